"""Image augmentation as pure functions of a key, on the device of the images, inside the step.

An `Augmentation` maps `(key, images, targets)` to new images and targets of the same batch:

    augmentation = augment.chain(augment.crop(4), augment.flip())
    images, labels = augmentation(key, images, labels)

Images are (N, C, H, W) of any dtype, before or after `data.prepare`.  The draws of an example
depend on the key and on its place in the batch alone, so a larger batch begins with the same ones.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from funcnets import random

Augmentation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def chain(*augmentations: Augmentation) -> Augmentation:
    """Return the augmentation that applies `augmentations` in order, each with a key of its own."""

    def augment(key: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for index, augmentation in enumerate(augmentations):
            images, targets = augmentation(random.fold_in(key, index), images, targets)
        return images, targets

    return augment


def flip(probability: float = 0.5) -> Augmentation:
    """Return the augmentation that mirrors each image left to right with this probability.

    Raises ValueError for a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"flip: the probability is {probability}; expected a number in [0, 1]")

    def augment(key: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mirrored = random.bernoulli(key, probability, (_batch_size("flip", images),))
        return torch.where(mirrored[:, None, None, None], images.flip(3), images), targets

    return augment


def crop(padding: int = 4) -> Augmentation:
    """Return the augmentation that moves each image by up to `padding` pixels along both axes.

    The image is padded with zeros on all sides, and a window of its own size is cut out at a
    random place (He et al., Deep residual learning, 2015, section 4.2).  Raises ValueError for a
    padding below 1.
    """
    if padding < 1:
        raise ValueError(f"crop: the padding is {padding}; expected 1 pixel or more")

    def augment(key: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = _batch_size("crop", images)
        top, left = _integers(key, count, 2 * padding + 1, 2 * padding + 1)
        rows = top[:, None] + torch.arange(images.shape[2], device=images.device)
        columns = left[:, None] + torch.arange(images.shape[3], device=images.device)
        padded = F.pad(images, (padding, padding, padding, padding)).permute(0, 2, 3, 1)
        example = torch.arange(count, device=images.device)[:, None, None]
        windows = padded[example, rows[:, :, None], columns[:, None, :]]
        return windows.permute(0, 3, 1, 2), targets

    return augment


def cutout(side: int = 8) -> Augmentation:
    """Return the augmentation that sets a square of `side` pixels of each image to zero.

    Its centre is a random pixel, so that it may reach beyond the border (DeVries and Taylor,
    Improved regularization of convolutional neural networks with cutout, 2017).  Raises ValueError
    for a side below 1.
    """
    if side < 1:
        raise ValueError(f"cutout: the side is {side}; expected 1 pixel or more")

    def augment(key: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = _batch_size("cutout", images)
        height, width = images.shape[2:]
        row, column = _integers(key, count, height, width)
        rows = _inside(row - side // 2, side, height)[:, None, :, None]
        columns = _inside(column - side // 2, side, width)[:, None, None, :]
        return torch.where(rows & columns, torch.zeros_like(images), images), targets

    return augment


def mixup(num_classes: int) -> Augmentation:
    """Return the augmentation that mixes each image and its target with those of another one.

    One weight, uniform in [0, 1), and one permutation are drawn for the batch; targets become
    probabilities (N, num_classes), of the images' dtype, which `losses.cross_entropy` takes.
    (Zhang et al., mixup: beyond empirical risk minimization, 2018, equation 1, with alpha = 1.)

    Raises ValueError for images of integers, which have no means: prepare them before.
    """
    if num_classes < 1:
        raise ValueError(f"mixup: num_classes is {num_classes}; expected 1 or more")

    def augment(key: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = _batch_size("mixup", images)
        if not images.is_floating_point():
            raise ValueError(
                f"mixup: the images are {images.dtype}; expected a floating type, as "
                "data.prepare(images, side) gives"
            )
        weight_key, order_key = random.split(key)
        weight = random.uniform(weight_key).to(images.dtype)
        partner = random.permutation(order_key, count)
        if targets.ndim == 1:
            targets = F.one_hot(targets, num_classes)
        targets = targets.to(images.dtype)
        mixed = [each * weight + each[partner] * (1 - weight) for each in (images, targets)]
        return mixed[0], mixed[1]

    return augment


def by_name(names: str, num_classes: int, side: int = 32) -> Augmentation:
    """Return the augmentation that a list such as `crop,flip,cutout,mixup` names, in its order.

    Of images of `side` pixels a crop moves up to an eighth, and a cutout covers a quarter: 4 and 8
    pixels of 32, as is usual.

    Raises ValueError for a name that isn't known.
    """
    known: Mapping[str, Callable[[], Augmentation]] = {
        "crop": lambda: crop(max(1, round(side / 8))),
        "flip": flip,
        "cutout": lambda: cutout(max(1, round(side / 4))),
        "mixup": lambda: mixup(num_classes),
    }
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(f"{name!r} is no augmentation; expected some of {', '.join(known)}")
    return chain(*(known[name]() for name in chosen))


def _batch_size(name: str, images: Tensor) -> int:
    if images.ndim != 4:
        raise ValueError(
            f"{name}: the images have shape {tuple(images.shape)}; expected (N, C, H, W)"
        )
    return images.shape[0]


def _integers(key: Tensor, count: int, *bounds: int) -> list[Tensor]:
    """Return for each bound `count` integers, uniform from 0 to below it."""
    drawn = random.uniform(key, (count, len(bounds)))
    return [(drawn[:, i] * bound).long().clamp(max=bound - 1) for i, bound in enumerate(bounds)]


def _inside(first: Tensor, length: int, size: int) -> Tensor:
    """Return the mask (N, size) of the `length` positions that begin at `first` (N,)."""
    position = torch.arange(size, device=first.device)
    return (position >= first[:, None]) & (position < first[:, None] + length)
