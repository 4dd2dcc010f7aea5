"""Data sets with a name: Fashion-MNIST, MNIST and their like, in IDX files with known hashes."""

import gzip
import hashlib
import string
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

import torch
from torch import Tensor

from funcnets import _files
from funcnets.data import idx
from funcnets.data.dataset import DataError

Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # images and labels to train on, and of the test set
BYTES_HASHED_AT_ONCE = 2**20


class NamedSet(Protocol):
    """A data set that `load` takes by name.

    Attributes:
        title: its name for people.
        layout: the subdirectory in which torchvision keeps its files.
    """

    @property
    def title(self) -> str:
        """The name for people."""

    @property
    def layout(self) -> Path:
        """The subdirectory in which torchvision keeps the files."""

    def missing(self, directory: Path) -> list[str]:
        """Return the names of the files that aren't in the directory."""

    def read(self, directory: Path) -> tuple[Parts, tuple[str, ...]]:
        """Return images, labels and class names.

        Raises DataError for files that are damaged, or whose hashes aren't those of the data set.
        """

    def fetch(self, directory: Path) -> None:
        """Download the files that are missing or damaged.

        Raises OSError or RuntimeError if that fails, DataError if other data are there.
        """


class UnknownContentError(DataError):
    """A file can be read, and isn't that of the data set."""


@dataclass(frozen=True)
class IdxSet:
    """A data set in four IDX files.

    Attributes:
        contents: for each file the MD5s of its content, decompressed, that are known.
        packed: for each file the MD5 of the packed file, as published; used without a known
            content.
        torchvision: the name of the class that downloads it.
        class_names: a name for each label.
    """

    title: str
    torchvision: str
    class_names: tuple[str, ...]
    contents: Mapping[str, tuple[str, ...]]
    packed: Mapping[str, str]

    largest_file = 16 + 60_000 * 28 * 28  # bytes of the training images, decompressed

    @property
    def layout(self) -> Path:
        """The subdirectory in which torchvision keeps the files."""
        return Path(self.torchvision, "raw")

    def missing(self, directory: Path) -> list[str]:
        """Return the names of the files that aren't in the directory."""
        return [name for name in idx.FILES if not idx.is_file(idx.file_in(directory, name))]

    def read(self, directory: Path) -> tuple[Parts, tuple[str, ...]]:
        """Return images, labels and class names."""
        parts = [self.read_file(idx.file_in(directory, name), name) for name in idx.FILES]
        return as_parts(parts, str(directory)), self.class_names

    def read_file(self, path: Path, name: str) -> Tensor:
        """Return the tensor of one of the files.  Raises DataError unless its hash is known."""
        tensor, found = idx.read(path, self.largest_file)
        known = self.contents.get(name, ())
        if found in known:
            return tensor
        if name in self.packed:
            with idx.reading(path):
                if hash_of_file(path) == self.packed[name]:
                    return tensor
        raise UnknownContentError(f"{path}: {self._unlike(name, found, known)}")

    def _unlike(self, name: str, found: str, known: tuple[str, ...]) -> str:
        if not known:
            return (
                f"not the packed file of {self.title}, whose MD5 is {self.packed.get(name)}; "
                "replace it by that, or give the directory without the name of a data set"
            )
        others = f" (or {', '.join(known[1:])}, the bundled part)" if known[1:] else ""
        return (
            f"not the file of {self.title}: its content has MD5 {found}; expected "
            f"{known[0]}{others}; replace it, or give another directory"
        )

    def fetch(self, directory: Path) -> None:
        """Download the files that are missing or damaged; other data are not replaced."""
        names = [name for name in idx.FILES if not self._is_whole(directory, name)]
        if not names:
            return
        # Imported here: torchvision takes seconds to import.
        from torchvision import datasets  # type: ignore[import-untyped]
        from torchvision.datasets.utils import download_url  # type: ignore[import-untyped]

        kind = getattr(datasets, self.torchvision)
        for name, checksum in kind.resources:
            if name in names:
                download_url(kind.mirrors[0] + name, directory, name, checksum)

    def _is_whole(self, directory: Path, name: str) -> bool:
        """True if a file is that of the data set, False if it is missing or damaged."""
        try:
            self.read_file(idx.file_in(directory, name), name)
        except UnknownContentError:
            raise
        except DataError:
            return False
        return True


@dataclass(frozen=True)
class EmnistSet:
    """A part of EMNIST, read from the archive that is published and that torchvision keeps.

    Images are turned upright (in the files, and in torchvision, rows and columns are exchanged),
    and the labels of `letters` count from 0.

    Source: Cohen et al., "EMNIST: an extension of MNIST to handwritten letters", 2017.
    """

    split: str
    class_names: tuple[str, ...]
    md5: str = "58c8d27c78d21e728a6bc7b3cc06412e"

    layout = Path("EMNIST", "raw")
    archive = "gzip.zip"

    @property
    def title(self) -> str:
        """The name for people."""
        return f"EMNIST {self.split}"

    def missing(self, directory: Path) -> list[str]:
        """Return the name of the archive if it isn't in the directory."""
        return [] if idx.is_file(directory / self.archive) else [self.archive]

    def read(self, directory: Path) -> tuple[Parts, tuple[str, ...]]:
        """Return images, labels and class names."""
        path = directory / self.archive
        with idx.reading(path):
            self._check(path)
            try:
                with zipfile.ZipFile(path) as archive:
                    parts = [self._member(archive, path, name) for name in idx.FILES]
            except (zipfile.BadZipFile, KeyError) as error:
                raise DataError(f"{path}: not a whole archive ({error}); replace it") from error
        images, labels, test_images, test_labels = as_parts(parts, str(path))
        first = 1 if self.split == "letters" else 0
        upright = [each.transpose(2, 3).contiguous() for each in (images, test_images)]
        return (upright[0], labels - first, upright[1], test_labels - first), self.class_names

    def _member(self, archive: zipfile.ZipFile, path: Path, name: str) -> Tensor:
        member = f"gzip/emnist-{self.split}-{name.replace('t10k', 'test')}"
        with archive.open(member) as packed, gzip.open(packed) as file:
            form = " decompressed"
            return idx.read_stream(cast(IO[bytes], file), f"{path}/{member}", form=form)[0]

    def _check(self, path: Path) -> None:
        if (found := hash_of_file(path)) != self.md5:
            raise DataError(
                f"{path}: not the archive of EMNIST: its MD5 is {found}; expected {self.md5}; "
                "replace it, or give another directory"
            )

    def fetch(self, directory: Path) -> None:
        """Download the archive if it is missing or damaged."""
        from torchvision.datasets import EMNIST  # type: ignore[import-untyped]
        from torchvision.datasets.utils import download_url

        download_url(EMNIST.url, directory, self.archive, self.md5)


@dataclass(frozen=True)
class CifarSet:
    """CIFAR-10 or CIFAR-100, by torchvision's reader; hashes are checked before unpickling."""

    title: str
    torchvision: str
    layout: Path

    def _kind(self, directory: Path) -> Any:
        """Return torchvision's class, for files in a directory of any name."""
        from torchvision import datasets

        kind = getattr(datasets, self.torchvision)
        return type(self.torchvision, (kind,), {"base_folder": directory.name})

    def missing(self, directory: Path) -> list[str]:
        """Return the names of the files that aren't in the directory."""
        return [name for name in self._checksums(directory) if not idx.is_file(directory / name)]

    def _checksums(self, directory: Path) -> dict[str, str]:
        kind = self._kind(directory)
        return dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])

    def read(self, directory: Path) -> tuple[Parts, tuple[str, ...]]:
        """Return images, labels and class names."""
        for name, expected in self._checksums(directory).items():
            path = directory / name
            with idx.reading(path):
                found = hash_of_file(path)
            if found != expected:
                raise DataError(
                    f"{path}: not the file of {self.title}: its MD5 is {found}; expected "
                    f"{expected}; replace it, or give another directory"
                )
        kind = self._kind(directory)
        try:
            sets = [kind(directory.absolute().parent, train=train) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{directory}: can't be read ({error}); replace it") from error
        parts = [
            part
            for each in sets
            for part in (
                torch.from_numpy(each.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(each.targets),
            )
        ]
        return as_parts(parts, str(directory)), tuple(sets[0].classes)

    def fetch(self, directory: Path) -> None:
        """Download the archive and unpack it, unless all files are there and whole."""
        directory = directory.absolute()
        self._kind(directory)(directory.parent, download=True)


def as_parts(parts: list[Tensor], source: str) -> Parts:
    """Return images with a channel, and labels of 64 bits.

    Raises DataError unless there are as many labels as images.
    """
    for which, first in (("training", 0), ("test", 2)):
        images, labels = parts[first : first + 2]
        if labels.ndim != 1 or images.ndim not in (3, 4) or len(images) != len(labels):
            raise DataError(
                f"{source}: {len(images)} {which} images, of shape {tuple(images.shape)}, but "
                f"{len(labels)} labels, of shape {tuple(labels.shape)}; both must come from the "
                "same data set"
            )
    images, labels, test_images, test_labels = (
        part[:, None] if part.ndim == 3 else part for part in parts
    )
    return images, labels.long(), test_images, test_labels.long()


def hash_of_file(path: Path) -> str:
    """Return the MD5 of a regular file."""
    digest = hashlib.md5(usedforsecurity=False)
    with _files.open_regular(path) as file:
        while part := file.read(BYTES_HASHED_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _by_file(*values: Any) -> dict[str, Any]:
    return dict(zip(idx.FILES, values, strict=True))


# MD5 of the decompressed file, in the full set and in the bundled part.  The MD5s published with
# the data are of the compressed files, whose headers have a time that Debian's package removes.
FASHION_MNIST = IdxSet(
    "Fashion-MNIST",
    "FashionMNIST",
    (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    contents=_by_file(
        ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "dcab80f289ae27ab265a1e83946f0a1c"),
        ("9018921c3c673c538a1fc5bad174d6f9", "611c8ef3426a757a9375a0ac94541d26"),
        ("8181f5470baa50b63fa0f6fddb340f0a", "4bb4107a89a38933fbbdd67584195c68"),
        ("15d484375f8d13e6eb1aabb0c3f46965", "84e2038f7beda4c0f4093bde29339f63"),
    ),
    packed={},
)
MNIST = IdxSet(
    "MNIST",
    "MNIST",
    tuple(string.digits),
    contents=_by_file(
        ("6bbc9ace898e44ae57da46a324031adb",),
        ("a25bea736e30d166cdddb491f175f624",),
        ("2646ac647ad5339dbf082846283269ea",),
        ("27ae3e4e09519cfbb04c329615203637",),
    ),
    packed={},
)
KMNIST = IdxSet(
    "KMNIST",
    "KMNIST",
    ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    contents={},
    packed=_by_file(
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
)
_MERGED = (*string.digits, *string.ascii_uppercase, *"abdefghnqrt")
EMNIST_CLASSES: dict[str, tuple[str, ...]] = {
    "balanced": _MERGED,
    "byclass": (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase),
    "bymerge": _MERGED,
    "digits": tuple(string.digits),
    "letters": tuple(string.ascii_lowercase),
    "mnist": tuple(string.digits),
}
NAMED: dict[str, NamedSet] = {
    "fashion-mnist": FASHION_MNIST,
    "mnist": MNIST,
    "kmnist": KMNIST,
    **{
        f"emnist-{split}": EmnistSet(split, class_names)
        for split, class_names in EMNIST_CLASSES.items()
    },
    "cifar10": CifarSet("CIFAR-10", "CIFAR10", Path("cifar-10-batches-py")),
    "cifar100": CifarSet("CIFAR-100", "CIFAR100", Path("cifar-100-python")),
}
