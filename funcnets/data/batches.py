"""Batches of a data set: prepared images, the order of an epoch, and its parts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from funcnets import random
from funcnets.data.dataset import DataError


def prepare(
    images: Tensor,
    side: int,
    dtype: torch.dtype = torch.float32,
    *,
    mean: Sequence[float] = (),
    deviation: Sequence[float] = (),
) -> Tensor:
    """Convert uint8 images (B, C, H, W) to pixels in [0, 1], (B, C, side, side), of `dtype`.

    Images of another size are resized bilinearly, with antialiasing, and rounded to 8-bit levels,
    so that every dtype gets the same image: that of torchvision's `Resize` on 8-bit images, within
    1/255 a pixel.  The function is pure and traceable, and works on the device of the images.

    Args:
        images: uint8 (B, C, H, W).
        side: height and width of the result in pixels.
        dtype: that of the result, floating.
        mean: one number for each channel that is subtracted from the pixels, such as
            `data.moments` returns; () for none.
        deviation: one number for each channel by which they are then divided.

    Raises DataError unless the images are uint8 of rank 4, `side` is at least 1, and there are as
    many means and deviations as channels, or none.

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
        raise DataError(f"images are {found}; expected torch.uint8 of shape (B, C, H, W)")
    if side < 1:
        raise DataError(f"side is {side}; expected 1 or more")
    if len(mean) != len(deviation) or len(mean) not in (0, images.shape[1]):
        raise DataError(
            f"{len(mean)} means and {len(deviation)} deviations for images of {images.shape[1]} "
            "channels; expected one of each for each channel"
        )
    if images.shape[-2:] == (side, side):
        return _normalized(images.to(dtype) / 255, mean, deviation)
    levels = functional.interpolate(
        images.float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return _normalized(levels.round().to(dtype) / 255, mean, deviation)


def _normalized(pixels: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    if not mean:
        return pixels
    channels = [
        (pixels[:, channel : channel + 1] - mean[channel]) / deviation[channel]
        for channel in range(len(mean))
    ]
    return channels[0] if len(channels) == 1 else torch.cat(channels, 1)


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
