"""Data sets of image files in a directory for each class."""

import os
import statistics
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets import random
from funcnets.data import images, memory
from funcnets.data.dataset import DataError, Dataset, from_tensors

TEST_DIRECTORIES = ("val", "test")
TEST_SHARE = 10  # one image of so many is of the test set, where no directory says which are
LARGEST_USUAL_SIDE = 224
UNSHOWN_CATEGORIES = ("Cc", "Cs")  # of Unicode: control characters, and bytes that aren't UTF-8


class _File(NamedTuple):
    path: Path
    label: int


def load_folder(
    directory: str | os.PathLike[str],
    *,
    side: int | None = None,
    device: str | torch.device = "cpu",
) -> Dataset:
    """Return the PNG and JPEG images in a directory, which has a subdirectory for each class.

    `directory/train` and `directory/val` (or `test`) have these subdirectories, with the same
    names; or `directory` has them itself, and a tenth of each class, at least one image, is drawn
    as the test set, always the same one.  Classes are numbered in the order of their names.  Files
    with other endings, and hidden ones, are left out.

    Images are grey if all files are, otherwise of three channels.  They are resized to `side`
    pixels along the shorter side, and cut to the middle square; with None the median of the shorter
    sides is taken, or 224 if it is more.

    Raises DataError for a directory without images or with one class, classes that differ between
    training and test images, files that can't be decoded, and images that don't fit into memory.
    """
    root = Path(directory)
    class_names, train, test = _split(root)
    headers = [images.read_header(file.path) for file in (*train, *test)]
    channels = max(header.channels for header in headers)
    if side is None:
        shorter = statistics.median_low(min(header.height, header.width) for header in headers)
        side = min(shorter, LARGEST_USUAL_SIDE)
    memory.check(len(headers) * channels * side * side, str(root))
    parts = (*_read(train, channels, side), *_read(test, channels, side))
    counts = f"{len(train):,} training and {len(test):,} test images of {len(class_names)} classes"
    dataset = from_tensors(
        *parts,
        class_names=class_names,
        source=f"images, {counts}, from {root}",
        name=f"folder:{root.absolute()}",
    )
    if torch.device(device).type != "cpu":
        memory.check(dataset.train_images.nbytes + dataset.test_images.nbytes, str(root), device)
    return dataset.to(device)


def _read(files: Sequence[_File], channels: int, side: int) -> tuple[Tensor, Tensor]:
    read = torch.empty(len(files), channels, side, side, dtype=torch.uint8)
    for place, file in zip(read, files, strict=True):
        place.copy_(images.read_image(file.path, channels, side))
    return read, torch.tensor([file.label for file in files])


def _split(root: Path) -> tuple[list[str], list[_File], list[_File]]:
    """Return class names, and the files to train on and of the test set."""
    if "train" not in {path.name for path in _directories(root)}:
        class_names = _class_names(root)
        parts = _split_by_key(_files_of(root, class_names))
        if not parts[1]:
            raise DataError(
                f"{root}: each class has one image: none is left to test on; add more images"
            )
        return class_names, *parts
    tests = [root / name for name in TEST_DIRECTORIES if (root / name).is_dir()]
    if not tests:
        raise DataError(
            f"{root}: has a directory train, but neither val nor test with the test images; make "
            "one, or leave both out for a tenth of the images to be drawn"
        )
    class_names, others = _class_names(root / "train"), _class_names(tests[0], least=1)
    if unknown := [name for name in others if name not in class_names]:
        raise DataError(
            f"{tests[0]}: has classes that aren't in {root / 'train'}: {', '.join(unknown)}"
        )
    train, test = (_all(_files_of(place, class_names)) for place in (root / "train", tests[0]))
    return class_names, train, test


def _all(files: Sequence[Sequence[_File]]) -> list[_File]:
    return [file for of_class in files for file in of_class]


def _split_by_key(files: Sequence[Sequence[_File]]) -> tuple[list[_File], list[_File]]:
    train: list[_File] = []
    test: list[_File] = []
    for label, of_class in enumerate(files):
        key = random.fold_in(random.key(0), label)
        order = random.permutation(key, len(of_class)).tolist()
        count = max(1, len(of_class) // TEST_SHARE) if len(of_class) > 1 else 0
        test += [of_class[index] for index in sorted(order[:count])]
        train += [of_class[index] for index in sorted(order[count:])]
    return train, test


def _directories(root: Path) -> list[Path]:
    """Return the subdirectories, in the order of their names, without hidden ones."""
    try:
        return sorted(
            path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise DataError(f"{root}: can't be read ({error.strerror})") from error


def _class_names(root: Path, least: int = 2) -> list[str]:
    names = [path.name for path in _directories(root)]
    if len(names) < least:
        count = "1 subdirectory" if len(names) == 1 else f"{len(names)} subdirectories"
        raise DataError(
            f"{root}: has {count}; expected one for each class, two or more, with its images"
        )
    for name in names:
        if any(unicodedata.category(letter) in UNSHOWN_CATEGORIES for letter in name):
            raise DataError(
                f"{root}: the class {name!r} has a character in its name that can't be shown; "
                "rename its directory"
            )
    return names


def _files_of(root: Path, class_names: Sequence[str]) -> list[list[_File]]:
    """Return the image files of each class."""
    files: list[list[_File]] = []
    for label, name in enumerate(class_names):
        if not (root / name).is_dir():
            files.append([])  # a class without test images
            continue
        try:
            paths = sorted(path for path in (root / name).rglob("*") if _is_image(path, root))
        except OSError as error:
            raise DataError(f"{root / name}: can't be read ({error.strerror})") from error
        if not paths:
            raise DataError(
                f"{root / name}: has no images; expected files that end in "
                f"{', '.join(images.SUFFIXES)}"
            )
        files.append([_File(path, label) for path in paths])
    return files


def _is_image(path: Path, root: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in images.SUFFIXES and path.is_file() and not is_hidden
