"""Data sets in memory: images and class labels on one device, with what describes them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from funcnets import random

CLASSES_AT_MOST = 100_000
IMAGES_SUMMED_AT_ONCE = 1024


class DataError(ValueError):
    """Data that are missing, damaged or out of range; the message is one line."""


class MissingDataError(DataError):
    """The files of a data set aren't in a directory, or in none that was searched."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their class labels, all on one device; `from_tensors` makes one and checks it.

    Attributes:
        train_images: uint8 (N, C, H, W).
        train_labels: int64 (N,), class numbers from 0.
        test_images: uint8 (M, C, H, W).
        test_labels: int64 (M,), class numbers from 0.
        source: one line for people: which data set it is, and where it was found.
        class_names: a name for each class number.
        name: `fashion-mnist` or another name that `load` takes, `idx` for IDX files of any
            content, or `tensors`.
        classes: the number of classes.
        channels: the number of channels C, 1 for grey images and 3 for colour.
        sides: height H and width W in pixels.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str
    class_names: tuple[str, ...]
    name: str = "tensors"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return self.train_images.shape[1]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self.train_images.shape[2:]
        return height, width

    def to(self, device: str | torch.device) -> "Dataset":
        """Return the data set on another device."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def from_tensors(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    class_names: Sequence[str] | None = None,
    source: str = "tensors",
    name: str = "tensors",
) -> Dataset:
    """Return the data set of your own tensors, on the device where they are.

    Args:
        train_images: uint8 (N, C, H, W), or (N, H, W) for grey images.
        train_labels: class numbers (N,), of an integer type, from 0.
        test_images: uint8 (M, C, H, W), or (M, H, W).
        test_labels: class numbers (M,).
        class_names: a name for each class; None names them `0`, `1` and so on, up to the largest
            label.
        source: one line for people.
        name: one word for programs.

    Raises DataError for other dtypes or shapes, no images, images and labels that aren't as many,
    negative labels, and a label without a name.

    >>> import torch
    >>> from funcnets import data
    >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    >>> labels = torch.tensor([0, 1, 2, 0])
    >>> dataset = data.from_tensors(images, labels, images[:2], labels[:2])
    >>> dataset.classes, dataset.channels, dataset.sides
    (3, 3, (32, 32))
    """
    train_images, test_images = _images("train", train_images), _images("test", test_images)
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"{source}: training images have shape {_shown(train_images.shape[1:])}, test images "
            f"{_shown(test_images.shape[1:])}; expected the same channels, height and width"
        )
    train_labels = _labels("train", train_labels, train_images)
    test_labels = _labels("test", test_labels, test_images)
    largest = int(max(train_labels.max(), test_labels.max()))
    if class_names is None:
        if largest >= CLASSES_AT_MOST:
            raise DataError(
                f"{source}: a label is {largest}; expected class numbers below {CLASSES_AT_MOST:,}"
            )
        class_names = [str(number) for number in range(largest + 1)]
    if largest >= len(class_names):
        raise DataError(
            f"{source}: a label is {largest}, but there are names for {len(class_names)} classes; "
            "give a name for each class number from 0 on"
        )
    return Dataset(
        train_images, train_labels, test_images, test_labels, source, tuple(class_names), name
    )


def _images(part: str, images: Tensor) -> Tensor:
    images = images[:, None] if images.ndim == 3 else images
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise DataError(
            f"{part}_images are {images.dtype} of shape {_shown(images.shape)}; expected "
            "torch.uint8 of shape (N, C, H, W), one image or more: of floating point images in "
            "[0, 1] make (255 * images).round().to(torch.uint8)"
        )
    return images


def _labels(part: str, labels: Tensor, images: Tensor) -> Tensor:
    is_integer = not labels.is_floating_point() and labels.dtype != torch.bool
    if not is_integer or labels.shape != images.shape[:1] or int(labels.min()) < 0:
        lowest = f", the lowest {labels.min()}," if is_integer and labels.numel() else ""
        raise DataError(
            f"{part}_labels are {labels.dtype} of shape {_shown(labels.shape)}{lowest} for "
            f"{len(images)} images; expected a class number, an integer from 0 on, for each image"
        )
    return labels.long()


def _shown(shape: Sequence[int]) -> str:
    return str(tuple(shape))


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


def hold_out(dataset: Dataset, fraction: float, key: Tensor) -> tuple[Dataset, Dataset]:
    """Return the data set without a part of its training images, and that part for validation.

    The second data set has the images that were drawn by the key as its test images, and the same
    training images as the first.  The order of images stays.

    Raises DataError unless both parts have an image.

    >>> from funcnets import data, random
    >>> dataset = data.load("bundled")
    >>> train, validation = data.hold_out(dataset, 0.1, random.key(0))
    >>> len(train.train_images), len(validation.test_images), len(train.test_images)
    (9000, 1000, 2000)
    """
    count = len(dataset.train_labels)
    held = round(fraction * count)
    if not 1 <= held < count:
        raise DataError(
            f"a validation part of {fraction} of {count} training images has {held}; expected at "
            "least 1, and 1 to train on"
        )
    device = dataset.train_labels.device
    order = random.permutation(key, count).to(device)
    chosen, rest = order[:held].sort().values, order[held:].sort().values
    train = replace(
        dataset,
        train_images=dataset.train_images[rest],
        train_labels=dataset.train_labels[rest],
        source=f"{dataset.source.split('; ')[0]}; {held:,} training images for validation",
    )
    validation = replace(
        train,
        test_images=dataset.train_images[chosen],
        test_labels=dataset.train_labels[chosen],
        source=f"{held:,} training images of {dataset.source}",
    )
    return train, validation


def fingerprint(dataset: Dataset) -> str:
    """Return a text that two data sets share only if images, labels and their order are the same.

    The first 128 bits of SHA-256 of shapes and values, in hexadecimal.

    >>> from funcnets import data
    >>> data.fingerprint(data.load("bundled"))
    '2f1abaa16e72e2c95d9bb37918d51278'
    """
    digest = hashlib.sha256()
    for part in (
        dataset.train_images,
        dataset.train_labels,
        dataset.test_images,
        dataset.test_labels,
    ):
        digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images (N, C, H, W), in [0, 1].

    They are of exact sums of whole numbers.  A channel of one level has deviation 1, so that
    dividing by it is harmless.

    >>> import torch
    >>> from funcnets import data
    >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> data.moments(images)
    ((0.5,), (0.5,))
    """
    total = torch.zeros(images.shape[1], dtype=torch.int64, device=images.device)
    squares = total
    for part in images.split(IMAGES_SUMMED_AT_ONCE):
        total = total + part.sum((0, 2, 3), dtype=torch.int64)
        squares = squares + (part.int() ** 2).sum((0, 2, 3), dtype=torch.int64)
    count = images.numel() // images.shape[1]
    mean = total.double() / count / 255
    variance = (squares.double() / count / 255**2 - mean**2).clamp(min=0)
    deviation = torch.where(variance > 1e-12, variance.sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(deviation.tolist())
