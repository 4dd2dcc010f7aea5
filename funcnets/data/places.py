"""Places of data sets: where their files are looked for, and what is read there."""

import difflib
import os
from pathlib import Path

import torch

from funcnets.data import folder, idx, memory
from funcnets.data.dataset import DataError, Dataset, MissingDataError, from_tensors
from funcnets.data.named import FASHION_MNIST, NAMED, NamedSet, as_parts

BUNDLED = Path(__file__).parents[1] / "bundled"
SEARCHED_ROOTS = (Path("data"), Path("~/data"))
SYSTEM_DIRECTORIES = {"Fashion-MNIST": Path("/usr/share/datasets/fashion-mnist")}
FOLDER = "folder:"  # then a directory
FASHION = "fashion-mnist"
IDX = "idx"  # four IDX files of any content


def _expanded(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(path))


def named(name: str) -> NamedSet:
    """Return the data set that is called `name`.  Raises DataError, with the nearest known name."""
    if name in NAMED:
        return NAMED[name]
    begun = [known for known in NAMED if name and known.startswith(name.lower())]
    close = begun or difflib.get_close_matches(name, NAMED, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise DataError(
        f"no data set is called {name!r}: {hint}known are {', '.join(NAMED)}, and folder:DIR for "
        "images in a directory for each class"
    )


def _download(kind: NamedSet, directory: Path) -> Path:
    """Fetch the files that `directory` lacks, or has damaged, and return it."""
    try:
        kind.fetch(directory)
    except (OSError, RuntimeError) as error:
        other = ", or use the bundled part" if kind.title == FASHION_MNIST.title else ""
        raise DataError(
            f"{kind.title} can't be downloaded into {directory} ({error}); give a directory that "
            f"has it{other}"
        ) from error
    return directory


def _find_given(kind: NamedSet, directory: str, download: bool, origin: str) -> Path:
    if directory == "bundled":
        if kind.title != FASHION_MNIST.title:
            raise DataError(f"{origin}: the bundled part is of Fashion-MNIST, not {kind.title}")
        if download:
            raise DataError(f"{origin}: the bundled part needs no download; choose one of the two")
        return BUNDLED
    root = _expanded(directory)
    for candidate in (root, root / kind.layout):
        if not kind.missing(candidate):
            return _download(kind, candidate) if download else candidate
    if download:
        return _download(kind, root / kind.layout)
    if not root.is_dir():
        raise MissingDataError(f"{origin}: no such directory; give one that has {kind.title}")
    other = (
        ", or use `bundled`, the part of it in the package"
        if kind.title == FASHION_MNIST.title
        else ""
    )
    raise MissingDataError(
        f"{origin}: no {', '.join(kind.missing(root))} in it, nor all files of {kind.title} in its "
        f"subdirectory {kind.layout}; give a directory that has them, or download them{other}"
    )


def find(
    directory: str | os.PathLike[str] | None = None,
    *,
    dataset: str | None = None,
    download: bool = False,
) -> Path:
    """Return the directory of the files that `load` reads, given the same arguments.

    Raises DataError as `load` does, except for damaged files, which it doesn't read.
    """
    if dataset is not None and dataset.startswith(FOLDER):
        return _find_folder(dataset, directory, download)
    kind = named(FASHION if dataset in (None, IDX) else str(dataset))
    if directory is not None:
        return _find_given(kind, os.fspath(directory), download, f"data directory {directory}")
    given = os.environ.get("FUNCNETS_DATA", "")
    if given and (given != "bundled" or kind.title == FASHION_MNIST.title):
        origin = f"data directory {given} (from FUNCNETS_DATA)"
        return _find_given(kind, given, download, origin)
    candidates = [root / kind.layout for root in SEARCHED_ROOTS]
    if kind.title in SYSTEM_DIRECTORIES:
        candidates.append(SYSTEM_DIRECTORIES[kind.title])
    for candidate in map(_expanded, candidates):
        if not kind.missing(candidate):
            return _download(kind, candidate) if download else candidate
    if download:
        return _download(kind, SEARCHED_ROOTS[0] / kind.layout)
    if kind.title == FASHION_MNIST.title:
        return BUNDLED
    raise MissingDataError(
        f"{kind.title} is in none of {', '.join(map(str, candidates))}; give its directory, or "
        "download it"
    )


def _find_folder(dataset: str, directory: str | os.PathLike[str] | None, download: bool) -> Path:
    place = dataset.removeprefix(FOLDER)
    if download:
        raise DataError(f"{dataset}: there is nothing to download for a directory of images")
    if not place:
        raise DataError(f"{dataset}: names no directory; expected folder:DIR")
    found = _expanded(place)
    if directory is not None and _expanded(directory).absolute() != found.absolute():
        raise DataError(
            f"{dataset} and the data directory {directory} are two places; give one of them"
        )
    return found


def load(
    directory: str | os.PathLike[str] | None = None,
    *,
    dataset: str | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
    side: int | None = None,
) -> Dataset:
    """Return a data set on `device`: Fashion-MNIST, or another one by its name or directory.

    Args:
        directory: the files are in it, or in its subdirectory as torchvision makes it (such as
            `FashionMNIST/raw`).  Without `dataset` any four IDX files will do, packed or not.  The
            word "bundled" stands for the part of Fashion-MNIST in this package: 10,000 training
            and 2,000 test images.  None searches the places below.
        dataset: `fashion-mnist`, `mnist`, `kmnist`, `emnist-balanced`, `-byclass`, `-bymerge`,
            `-digits`, `-letters` or `-mnist`, `cifar10`, `cifar100`: files with other hashes are
            refused, those of CIFAR before they are unpickled.  `idx` stands for any four IDX
            files.  `folder:DIR` stands for images in a directory for each class, see
            `load_folder`.
        download: fetch the files that are missing or damaged by torchvision, into `directory` or
            else `data`.  Readable files of other data are never replaced.
        device: the device of the tensors.
        side: pixels a side of the images of `folder:DIR`; others keep their size.

    Without a `directory` these places are searched:

    1. The directory in the environment variable FUNCNETS_DATA, and no other if it is set.
    2. `data` in the current or the home directory, in torchvision's layout, or the directory of
       Debian's package dataset-fashion-mnist.
    3. With `download`: torchvision's download.
    4. For Fashion-MNIST the bundled part.

    Raises DataError if the data aren't found, the download fails, a file is damaged or of another
    data set, or the images don't fit into memory.

    >>> from funcnets import data
    >>> dataset = data.load("bundled")
    >>> dataset.train_images.shape, dataset.test_labels.shape
    (torch.Size([10000, 1, 28, 28]), torch.Size([2000]))
    >>> dataset.name, dataset.classes, dataset.channels, dataset.class_names[9]
    ('fashion-mnist', 10, 1, 'Ankle boot')
    """
    found = find(directory, dataset=dataset, download=download)
    if dataset is not None and dataset.startswith(FOLDER):
        return folder.load_folder(found, side=side, device=device)
    is_given = directory is not None or bool(os.environ.get("FUNCNETS_DATA"))
    is_any = dataset == IDX or (dataset is None and is_given)
    if is_any and found != BUNDLED:
        read = _read_any(found)
    else:
        read = _read_named(FASHION if is_any else dataset or FASHION, found)
    size = read.train_images.nbytes + read.test_images.nbytes
    if torch.device(device).type != "cpu":
        memory.check(size, read.source, device)
    return read.to(device)


def _read_named(name: str, found: Path) -> Dataset:
    kind = named(name)
    parts, class_names = kind.read(found)
    counts = f"{len(parts[0]):,} training and {len(parts[2]):,} test images"
    source = f"{kind.title}, {counts}, from {found}"
    if found == BUNDLED:
        source = (
            f"Fashion-MNIST, the bundled part: {counts}; for the full set, download it, or give "
            "its directory, as an argument or in FUNCNETS_DATA"
        )
    return from_tensors(*parts, class_names=class_names, source=source, name=name)


def _read_any(found: Path) -> Dataset:
    """Return the data set of four IDX files: Fashion-MNIST if they are its files."""
    read = [idx.read(idx.file_in(found, name)) for name in idx.FILES]
    parts = as_parts([tensor for tensor, _ in read], str(found))
    known = [FASHION_MNIST.contents[name] for name in idx.FILES]
    is_known = all(md5 in md5s for (_, md5), md5s in zip(read, known, strict=True))
    counts = f"{len(parts[0]):,} training and {len(parts[2]):,} test images"
    if is_known:
        return from_tensors(
            *parts,
            class_names=FASHION_MNIST.class_names,
            source=f"{FASHION_MNIST.title}, {counts}, from {found}",
            name=FASHION,
        )
    return from_tensors(*parts, source=f"IDX files, {counts}, from {found}", name=IDX)
