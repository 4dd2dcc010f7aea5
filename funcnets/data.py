"""Fashion-MNIST: finding and reading its files, and drawing batches from them.

The whole data set is kept on the device as uint8.  A batch is gathered by shuffled indices, and is
converted to floating point, at the side that a network expects, inside the training step.

>>> from funcnets import data, random
>>> dataset = data.load("bundled")
>>> order = data.shuffle(random.key(0), epoch=0, count=len(dataset.train_images))
>>> indices = data.batches(order, batch_size=128)[0]
>>> x, labels = data.prepare(dataset.train_images[indices], side=28), dataset.train_labels[indices]
>>> x.shape, x.dtype, labels.shape
(torch.Size([128, 1, 28, 28]), torch.float32, torch.Size([128]))
"""

import gzip
import hashlib
import math
import os
import stat
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from funcnets import _files, random

__all__ = [
    "DataError",
    "Dataset",
    "batches",
    "find",
    "limit",
    "load",
    "prepare",
    "read_idx",
    "shuffle",
]

MAGIC = b"\x00\x00\x08"  # of an IDX file of unsigned bytes
BYTES_READ_AT_ONCE = 2**20
LARGEST_FILE = 16 + 60_000 * 28 * 28  # bytes of the training images, decompressed
BUNDLED = Path(__file__).with_name("bundled")

# MD5 of the decompressed file, in the full set and in the bundled part.  The MD5s published with
# the data are of the compressed files, whose headers have a time that Debian's package removes.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "dcab80f289ae27ab265a1e83946f0a1c",
    ),
    "train-labels-idx1-ubyte.gz": (
        "9018921c3c673c538a1fc5bad174d6f9",
        "611c8ef3426a757a9375a0ac94541d26",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8181f5470baa50b63fa0f6fddb340f0a",
        "4bb4107a89a38933fbbdd67584195c68",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "15d484375f8d13e6eb1aabb0c3f46965",
        "84e2038f7beda4c0f4093bde29339f63",
    ),
}

TORCHVISION_LAYOUT = Path("FashionMNIST", "raw")
SEARCHED_DIRECTORIES = (
    Path("data") / TORCHVISION_LAYOUT,
    Path("~/data") / TORCHVISION_LAYOUT,
    Path("/usr/share/datasets/fashion-mnist"),
)


class DataError(ValueError):
    """Data that are missing, damaged or out of range; the message is one line."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their class labels, all on one device.

    Attributes:
        train_images: uint8 (N, 1, 28, 28).
        train_labels: int64 (N,), 0 to 9.
        test_images: uint8 (M, 1, 28, 28).
        test_labels: int64 (M,), 0 to 9.
        source: one line for people: which data set it is, and where it was found.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read a gzipped IDX file: a uint8 tensor of the shape in the file's header.

    Raises DataError if the file can't be read or decompressed, isn't an IDX file of unsigned bytes,
    has fewer or more bytes than its header says, or is empty.
    Format: http://yann.lecun.com/exdb/mnist/, "The IDX file format".

    >>> from funcnets import data
    >>> data.read_idx(data.BUNDLED / "t10k-images-idx3-ubyte.gz").shape
    torch.Size([2000, 28, 28])
    """
    return _parse_idx(_decompress(path), path)


def _decompress(path: str | os.PathLike[str], most: float = math.inf) -> bytes:
    """Return the content of a gzipped IDX file, and at most one byte more than its header says.

    So a small file that would become a huge one is found before it fills the memory.  Raises
    DataError also if the header says more than `most` bytes.
    """
    content = bytearray()
    try:
        with _files.open_regular(path) as file, gzip.open(file) as unpacked:
            while (left := _implied_length(content) - len(content)) > 0:
                if len(content) + left > most + 1:
                    raise DataError(f"{path}: its header says more than {most:,} bytes; replace it")
                part = unpacked.read(min(left, BYTES_READ_AT_ONCE))
                if not part:
                    break
                content += part
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); replace it") from error
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: can't be read ({reason})") from error
    return bytes(content)


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


def _parse_idx(content: bytes, path: str | os.PathLike[str]) -> Tensor:
    start = content[:4]
    if len(start) < 4 or start[:3] != MAGIC or start[3] == 0:
        raise DataError(
            f"{path}: decompressed, it begins with the bytes [{start.hex(' ')}]; an IDX file of "
            "unsigned bytes begins with [00 00 08] and its rank, 1 or more"
        )
    rank = start[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(
            f"{path}: {len(content)} bytes decompressed; rank {rank} needs {header} or more"
        )
    shape = struct.unpack(f">{rank}I", content[4:header])
    dimensions = "x".join(map(str, shape))
    expected = header + math.prod(shape)
    if len(content) != expected:
        count = f"{len(content)}" if len(content) < expected else f"more than {expected}"
        raise DataError(
            f"{path}: {count} bytes decompressed; its header says {expected}, "
            f"for the shape {dimensions}"
        )
    if 0 in shape:
        raise DataError(f"{path}: it is empty; its header gives the shape {dimensions}")
    # A bytearray, as torch warns of memory that is read-only.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def _read_known(path: Path) -> Tensor:
    content = _decompress(path, most=LARGEST_FILE)
    tensor = _parse_idx(content, path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    full, bundled = CHECKSUMS[path.name]
    if found not in (full, bundled):
        raise DataError(
            f"{path}: not the file of Fashion-MNIST: its content has MD5 {found}; expected {full} "
            f"(or {bundled}, the bundled part); replace it, or give another directory"
        )
    return tensor


def _read_pair(directory: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images, labels = _read_known(directory / images_name), _read_known(directory / labels_name)
    if len(images) != len(labels):
        raise DataError(
            f"{directory}: {len(images)} images in {images_name}, but {len(labels)} labels in "
            f"{labels_name}; both must come from the same data set"
        )
    return rearrange(images, "n height width -> n 1 height width"), labels.long()


def _is_file(path: Path) -> bool:
    """True if a file is there.  Raises DataError if that can't be seen."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); give another directory, or use `bundled`"
        ) from error


def _has_all_files(directory: Path) -> bool:
    return all(_is_file(directory / name) for name in CHECKSUMS)


def _is_whole(path: Path) -> bool:
    """True if a file is that of Fashion-MNIST."""
    try:
        _read_known(path)
    except DataError:
        return False
    return True


def _download(directory: Path) -> Path:
    """Fetch the files that `directory` lacks, or has damaged, and return it."""
    names = [name for name in CHECKSUMS if not _is_whole(directory / name)]
    if not names:
        return directory
    # Imported here: torchvision takes seconds to import, and is needed for nothing else.
    from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]
    from torchvision.datasets.utils import download_url  # type: ignore[import-untyped]

    try:
        for name, checksum in FashionMNIST.resources:
            if name in names:
                download_url(FashionMNIST.mirrors[0] + name, directory, name, checksum)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST can't be downloaded into {directory} ({error}); give a directory that "
            "has it, or use the bundled part"
        ) from error
    return directory


def _find_named(directory: str, download: bool, origin: str) -> Path:
    if directory == "bundled":
        if download:
            raise DataError(f"{origin}: the bundled part needs no download; choose one of the two")
        return BUNDLED
    root = Path(os.path.expanduser(directory))
    for candidate in (root, root / TORCHVISION_LAYOUT):
        if _has_all_files(candidate):
            return _download(candidate) if download else candidate
    if download:
        return _download(root / TORCHVISION_LAYOUT)
    missing = [name for name in CHECKSUMS if not _is_file(root / name)]
    raise DataError(
        f"{origin}: no {', '.join(missing)} in it, nor all four files in its subdirectory "
        f"{TORCHVISION_LAYOUT}; give a directory that has them, download them, or use `bundled`, "
        "the part of the data set that is in the package"
    )


def find(directory: str | os.PathLike[str] | None = None, *, download: bool = False) -> Path:
    """Return the directory of the files that `load` reads, given the same arguments.

    Raises DataError as `load` does, except for damaged files, which it doesn't read.
    """
    if directory is not None:
        return _find_named(os.fspath(directory), download, f"data directory {directory}")
    if named := os.environ.get("FUNCNETS_DATA"):
        return _find_named(named, download, f"data directory {named} (from FUNCNETS_DATA)")
    for candidate in SEARCHED_DIRECTORIES:
        expanded = Path(os.path.expanduser(candidate))
        if _has_all_files(expanded):
            return _download(expanded) if download else expanded
    return _download(Path("data") / TORCHVISION_LAYOUT) if download else BUNDLED


def load(
    directory: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    device: str | torch.device = "cpu",
) -> Dataset:
    """Return Fashion-MNIST on `device`, from the first of these places that has it.

    1. `directory`, or else the one in the environment variable FUNCNETS_DATA: the four IDX `.gz`
       files in it, or in its subdirectory `FashionMNIST/raw`, torchvision's layout.  If one is
       given, no other place is searched.  The word "bundled" stands for the bundled part.
    2. `data/FashionMNIST/raw` in the current or the home directory, or the directory of Debian's
       package dataset-fashion-mnist.
    3. With `download`: torchvision's download, into `directory` or else `data`.  It also replaces
       damaged files in the places above.
    4. The bundled part, which is in this package: 10,000 training and 2,000 test images.

    Raises DataError if a given directory lacks a file, the download fails, or a file is damaged or
    isn't a file of Fashion-MNIST.

    >>> from funcnets import data
    >>> dataset = data.load("bundled")
    >>> dataset.train_images.shape, dataset.test_labels.shape
    (torch.Size([10000, 1, 28, 28]), torch.Size([2000]))
    """
    found = find(directory, download=download)
    train_images, train_labels, test_images, test_labels = (
        part.to(device)
        for part in (
            *_read_pair(found, "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
            *_read_pair(found, "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        )
    )
    counts = f"{len(train_images):,} training and {len(test_images):,} test images"
    source = f"Fashion-MNIST, {counts}, from {found}"
    if found == BUNDLED:
        source = (
            f"Fashion-MNIST, the bundled part: {counts}; for the full set, download it, or give "
            "its directory, as an argument or in FUNCNETS_DATA"
        )
    return Dataset(train_images, train_labels, test_images, test_labels, source)


def limit(dataset: Dataset, count: int) -> Dataset:
    """Return the data set with only its first `count` training images, and all test images.

    Raises DataError unless 1 <= count <= the number of training images.
    """
    available = len(dataset.train_images)
    if not 1 <= count <= available:
        raise DataError(f"limit of {count} training images; expected 1 to {available}")
    return replace(
        dataset,
        train_images=dataset.train_images[:count],
        train_labels=dataset.train_labels[:count],
        source=f"the first {count:,} training images of {dataset.source}",
    )


def prepare(images: Tensor, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 images (B, 1, H, W) to pixels in [0, 1], (B, 1, side, side), of `dtype`.

    Images of another size are resized bilinearly, with antialiasing, and rounded to 8-bit levels,
    so that every dtype gets the same image: that of torchvision's `Resize` on 8-bit images, within
    1/255 a pixel.  The function is pure and traceable, and works on the device of the images.

    Raises DataError unless the images are uint8 of rank 4, and `side` is at least 1.

    >>> import torch
    >>> from funcnets import data
    >>> images = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    >>> data.prepare(images, side=2)
    tensor([[[[0.0000, 0.2000],
              [0.4000, 1.0000]]]])
    >>> data.prepare(images, side=224).shape
    torch.Size([1, 1, 224, 224])
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise DataError(f"images are {found}; expected torch.uint8 of shape (B, 1, H, W)")
    if side < 1:
        raise DataError(f"side is {side}; expected 1 or more")
    if images.shape[-2:] == (side, side):
        return images.to(dtype) / 255
    levels = functional.interpolate(
        images.float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return levels.round().to(dtype) / 255


def shuffle(key: Tensor, epoch: int | Tensor, count: int) -> Tensor:
    """Return the order of the examples in an epoch: a permutation of 0 to count - 1, int64.

    It depends on the key and the epoch alone, so that an interrupted training can go on with it.

    >>> from funcnets import data, random
    >>> data.shuffle(random.key(0), epoch=3, count=5).sort().values
    tensor([0, 1, 2, 3, 4])
    """
    return random.permutation(random.fold_in(key, epoch), count)


def batches(indices: Tensor, batch_size: int, *, start: int = 0) -> list[Tensor]:
    """Split `indices` (N,) into batches, in order; the last one may be shorter.

    The first `start` batches are left out, to go on in the middle of an epoch.

    Raises DataError unless `batch_size` is at least 1, and `start` within the epoch.

    >>> import torch
    >>> from funcnets import data
    >>> data.batches(torch.arange(5), batch_size=2, start=1)
    [tensor([2, 3]), tensor([4])]
    """
    if batch_size < 1:
        raise DataError(f"batch size is {batch_size}; expected 1 or more")
    total = math.ceil(len(indices) / batch_size)
    if not 0 <= start <= total:
        raise DataError(f"start at batch {start}; expected 0 to {total}, the batches of the epoch")
    return [
        indices[at : at + batch_size] for at in range(start * batch_size, len(indices), batch_size)
    ]
