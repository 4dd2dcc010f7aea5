"""Fashion-MNIST: where its files are found, how they are read, and how batches are drawn.

The whole set lies on the device as bytes.  A batch is a gather by shuffled indices, and becomes
floating point, at the side that a network wants, only then.
"""

import gzip
import hashlib
import math
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from funcnets import random

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

BUNDLED = Path(__file__).with_name("bundled")

# MD5 of what the file unpacks to, for the full set and for the bundled part.  The MD5s published
# with the data are of the packed files, whose headers carry a time that Debian's package drops.
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
USUAL_PLACES = (
    Path("data") / TORCHVISION_LAYOUT,
    Path("~/data") / TORCHVISION_LAYOUT,
    Path("/usr/share/datasets/fashion-mnist"),
)


class DataError(ValueError):
    """Data that are missing, damaged or not what was asked for; the message is one line."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their classes, all on one device.

    Attributes:
        train_images: uint8 (N, 1, 28, 28).
        train_labels: int64 (N,), 0 to 9.
        test_images: uint8 (M, 1, 28, 28).
        test_labels: int64 (M,), 0 to 9.
        source: one line for people: which set this is, and how to get the full one if it isn't.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """The uint8 tensor in a gzipped IDX file, of the shape that its header gives.

    Raises DataError where the file can't be read or unpacked, isn't IDX of unsigned bytes, has
    fewer or more bytes than its header promises, or is empty.
    Format: http://yann.lecun.com/exdb/mnist/, "The IDX file format".
    """
    return _parse_idx(_unpack(path), path)


def _unpack(path: str | os.PathLike[str]) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); replace it") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error


def _parse_idx(content: bytes, path: str | os.PathLike[str]) -> Tensor:
    start = content[:4]
    if len(start) < 4 or start[:3] != b"\x00\x00\x08" or start[3] == 0:
        raise DataError(
            f"{path}: unpacked, it begins with the bytes [{start.hex(' ')}]; an IDX file of "
            "unsigned bytes begins with [00 00 08] and its rank, 1 or more"
        )
    rank = start[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(
            f"{path}: {len(content)} bytes unpacked; rank {rank} needs {header} or more"
        )
    shape = struct.unpack(f">{rank}I", content[4:header])
    dimensions = "x".join(map(str, shape))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes unpacked; its header promises {expected}, "
            f"for the shape {dimensions}"
        )
    if 0 in shape:
        raise DataError(f"{path}: nothing in it; its header gives the shape {dimensions}")
    # A copy, as torch warns of memory that it could write to but mustn't.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def _read_known(path: Path) -> Tensor:
    content = _unpack(path)
    tensor = _parse_idx(content, path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    full, bundled = CHECKSUMS[path.name]
    if found not in (full, bundled):
        raise DataError(
            f"{path}: not Fashion-MNIST's: its content has MD5 {found}, expected {full} "
            f"(or {bundled}, the bundled part); replace it, or name another directory"
        )
    return tensor


def _read_pair(place: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images, labels = _read_known(place / images_name), _read_known(place / labels_name)
    if len(images) != len(labels):
        raise DataError(
            f"{place}: {len(images)} images in {images_name}, but {len(labels)} labels in "
            f"{labels_name}; both must come from the same set"
        )
    return rearrange(images, "n height width -> n 1 height width"), labels.long()


def _is_complete(place: Path) -> bool:
    return all(os.path.isfile(place / name) for name in CHECKSUMS)


def _download(root: Path) -> Path:
    from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]
    from torchvision.datasets.utils import download_url  # type: ignore[import-untyped]

    place = root / TORCHVISION_LAYOUT
    try:
        for name, checksum in FashionMNIST.resources:
            download_url(FashionMNIST.mirrors[0] + name, place, name, checksum)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST can't be downloaded into {place} ({error}); "
            "give a directory that has it (--data DIR), or do without --download"
        ) from error
    return place


def _find_named(directory: str, download: bool, origin: str) -> Path:
    if directory == "bundled":
        if download:
            raise DataError(f"{origin}: the bundled part needs no download; choose one of the two")
        return BUNDLED
    root = Path(os.path.expanduser(directory))
    for place in (root, root / TORCHVISION_LAYOUT):
        if _is_complete(place):
            return place
    if download:
        return _download(root)
    missing = [name for name in CHECKSUMS if not os.path.isfile(root / name)]
    raise DataError(
        f"{origin}: no {', '.join(missing)} in it, nor all four files in {TORCHVISION_LAYOUT} "
        "below it; name a directory that has them, add --download, or use --data bundled"
    )


def find(directory: str | os.PathLike[str] | None = None, *, download: bool = False) -> Path:
    """The directory of the files that `load` reads for these arguments; `BUNDLED` at last.

    Raises DataError as `load` does, but for damaged files.
    """
    if directory is not None:
        return _find_named(os.fspath(directory), download, f"data directory {directory}")
    if named := os.environ.get("FUNCNETS_DATA"):
        return _find_named(named, download, f"data directory {named} (from FUNCNETS_DATA)")
    for place in USUAL_PLACES:
        expanded = Path(os.path.expanduser(place))
        if _is_complete(expanded):
            return expanded
    return _download(Path("data")) if download else BUNDLED


def load(
    directory: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    device: str | torch.device = "cpu",
) -> Dataset:
    """Fashion-MNIST on `device`, from the first of these places that has it.

    1. `directory`, or else the one that FUNCNETS_DATA names: its four IDX `.gz` files, there or in
       torchvision's layout below.  No other place is looked at then.  The word "bundled" stands
       for the bundled part.
    2. `data/FashionMNIST/raw` here or in the home directory, or Debian's dataset-fashion-mnist.
    3. With `download`: torchvision's download, into `directory` or else `data`.
    4. The part that comes with this package: 10,000 training and 2,000 test images.

    Raises DataError where a named directory lacks a file, the download fails, or a file is damaged
    or isn't Fashion-MNIST's.
    """
    place = find(directory, download=download)
    train_images, train_labels, test_images, test_labels = (
        part.to(device)
        for part in (
            *_read_pair(place, "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
            *_read_pair(place, "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        )
    )
    counts = f"{len(train_images):,} training and {len(test_images):,} test images"
    source = f"Fashion-MNIST, {counts}, from {place}"
    if place == BUNDLED:
        source = (
            f"Fashion-MNIST, the bundled part: {counts}; for the full set, add --download, "
            "or name its directory with --data DIR or FUNCNETS_DATA"
        )
    return Dataset(train_images, train_labels, test_images, test_labels, source)


def limit(dataset: Dataset, count: int) -> Dataset:
    """The same set with its first `count` training images alone; the test images all stay.

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
    """Pixels in [0, 1] of the given dtype, (B, 1, side, side), from uint8 (B, 1, H, W).

    Another size is resized to bilinearly, with antialiasing, and rounded to whole grey levels, so
    that every dtype sees the same image: that of torchvision's `Resize` on 8-bit images, within
    1/255 a pixel.  Pure, traceable, and on the images' device.
    Raises DataError where the images aren't uint8 of rank 4, or `side` is less than 1.
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
    """The order of an epoch: int64 (count,), each of 0 to count - 1 once.

    The same for the same key and epoch, whatever was drawn before.
    """
    return random.permutation(random.fold_in(key, epoch), count)


def batches(indices: Tensor, batch_size: int, *, start: int = 0) -> list[Tensor]:
    """`indices` (N,) in batches, in order, the last one short where it must be.

    `start` leaves out that many batches at the beginning, so that an epoch goes on where it
    stopped.  Raises DataError where `batch_size` is less than 1, or `start` isn't within the epoch.
    """
    if batch_size < 1:
        raise DataError(f"batch size is {batch_size}; expected 1 or more")
    total = math.ceil(len(indices) / batch_size)
    if not 0 <= start <= total:
        raise DataError(f"start at batch {start}; expected 0 to {total}, the batches of the epoch")
    return [
        indices[at : at + batch_size] for at in range(start * batch_size, len(indices), batch_size)
    ]
