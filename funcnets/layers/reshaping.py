"""Layers that change the shape of a feature map."""

from functools import partial
from typing import Literal

from einops import rearrange
from torch.nn import functional as F

from funcnets.core import Layer
from funcnets.layers._arguments import Size, check_sizes, format_kind, pair
from funcnets.layers._leaf import function_layer


def flatten() -> Layer:
    """Return the feature map as one row for each example, (N, C, H, W) -> (N, C·H·W).

    >>> import torch
    >>> from funcnets import layers
    >>> tuple(layers.flatten().apply({}, {}, torch.zeros(2, 3, 4, 5))[0].shape)
    (2, 60)
    """
    return function_layer("flatten()", lambda x: rearrange(x, "n c h w -> n (c h w)"), ranks=(4,))


def upsample(scale: Size = 2, mode: Literal["nearest", "bilinear"] = "nearest") -> Layer:
    """Return the image enlarged, (N, C, H, W) -> (N, C, scale · H, scale · W).

    It computes what `torch.nn.Upsample` does, in bilinear mode without `align_corners`.

    Args:
        scale: whole factor of height and width.
        mode: "nearest" repeats pixels, "bilinear" interpolates.

    Raises ValueError for a scale below 1 or not whole, and for another mode.

    >>> import torch
    >>> from funcnets import layers
    >>> layers.upsample(2).apply({}, {}, torch.tensor([[[[1.0, 2.0]]]]))[0]
    tensor([[[[1., 1., 2., 2.],
              [1., 1., 2., 2.]]]])
    """
    kind = format_kind("upsample", scale, mode=(mode, "nearest"))
    check_sizes(kind, 1, scale=scale)
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"{kind}: mode is {mode!r}; expected nearest or bilinear")
    factors = tuple(float(factor) for factor in pair(scale))
    return function_layer(kind, partial(F.interpolate, scale_factor=factors, mode=mode), ranks=(4,))
