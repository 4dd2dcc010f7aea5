"""IDX files of unsigned bytes, the format of MNIST, packed by gzip or not."""

import gzip
import hashlib
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from funcnets import _files
from funcnets.data import memory
from funcnets.data.dataset import DataError

MAGIC = b"\x00\x00\x08"  # of an IDX file of unsigned bytes
BYTES_READ_AT_ONCE = 2**20

# Training images and labels, test images and labels.
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an IDX file, gzipped if its name ends in `.gz`: uint8 of the shape in its header.

    Raises DataError if the file can't be read or decompressed, isn't an IDX file of unsigned bytes,
    has fewer or more bytes than its header says, is empty, or doesn't fit into memory.
    Format: http://yann.lecun.com/exdb/mnist/, "The IDX file format".

    >>> from funcnets import data
    >>> data.read_idx(data.BUNDLED / "t10k-images-idx3-ubyte.gz").shape
    torch.Size([2000, 28, 28])
    """
    return read(path)[0]


def read(path: str | os.PathLike[str], most: float = math.inf) -> tuple[Tensor, str]:
    """Return the tensor of an IDX file, and the MD5 of its content, decompressed.

    Raises DataError as `read_idx` does, and if the header says more than `most` bytes.
    """
    with reading(path), _files.open_regular(path) as file:
        if Path(path).suffix != ".gz":
            return read_stream(file, str(path), most)
        with gzip.open(file) as unpacked:
            return read_stream(cast(IO[bytes], unpacked), str(path), most, " decompressed")


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around code that reads a file: what can go wrong becomes a DataError with its path."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); replace it") from error
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: can't be read ({reason})") from error


def read_stream(
    stream: IO[bytes], path: str, most: float = math.inf, form: str = ""
) -> tuple[Tensor, str]:
    """Return the tensor of the IDX file in a stream, and the MD5 of its content.

    At most one byte more than the header says is read, so a small file that would become a huge
    one is found before it fills the memory.  `form` is ` decompressed` for messages about a packed
    file.
    """
    content = bytearray()
    while (left := _implied_length(content) - len(content)) > 0:
        if (size := len(content) + left) > most + 1:
            raise DataError(f"{path}: its header says more than {most:,} bytes; replace it")
        memory.check(size, path)
        part = stream.read(min(left, BYTES_READ_AT_ONCE))
        if not part:
            break
        content += part
    tensor = _parse(content, path, form)
    return tensor, hashlib.md5(content, usedforsecurity=False).hexdigest()


def _implied_length(start: bytearray) -> int:
    """Return how many bytes to read of a file that begins like this: one more than it should have.

    Of its header first; 4 for a file that isn't IDX.
    """
    if len(start) < 4 or start[:3] != MAGIC:
        return 4
    header = 4 + 4 * start[3]
    if len(start) < header or not start[3]:
        return header
    return header + int(math.prod(struct.unpack(f">{start[3]}I", start[4:header]))) + 1


def _parse(content: bytearray, path: str, form: str) -> Tensor:
    start = content[:4]
    if len(start) < 4 or start[:3] != MAGIC or start[3] == 0:
        raise DataError(
            f"{path}:{form}{',' if form else ''} it begins with the bytes [{start.hex(' ')}]; an "
            "IDX file of unsigned bytes begins with [00 00 08] and its rank, 1 or more"
        )
    rank = start[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(f"{path}: {len(content)} bytes{form}; rank {rank} needs {header} or more")
    shape = struct.unpack(f">{rank}I", content[4:header])
    dimensions = "x".join(map(str, shape))
    expected = header + math.prod(shape)
    if len(content) != expected:
        count = f"{len(content)}" if len(content) < expected else f"more than {expected}"
        raise DataError(
            f"{path}: {count} bytes{form}; its header says {expected}, for the shape {dimensions}"
        )
    if 0 in shape:
        raise DataError(f"{path}: it is empty; its header gives the shape {dimensions}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).reshape(shape)


def file_in(directory: Path, name: str) -> Path:
    """Return the path of one of `FILES`, packed or not; the packed one if neither is there.

    An unpacked file may also be called `train-images.idx3-ubyte`.
    """
    unpacked = name.removesuffix(".gz")
    names = (name, unpacked, unpacked.replace("-idx", ".idx"))
    there = (directory / other for other in names if is_file(directory / other))
    return next(there, directory / name)


def is_file(path: Path) -> bool:
    """True if a regular file is there.  Raises DataError if that can't be seen."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); give another directory, or use `bundled`"
        ) from error
