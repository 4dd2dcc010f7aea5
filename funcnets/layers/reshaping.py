"""Layers that change the shape of a feature map."""

from einops import rearrange

from funcnets.core import Layer
from funcnets.layers._leaf import function_layer


def flatten() -> Layer:
    """Return the feature map as one row for each example, (N, C, H, W) -> (N, C·H·W).

    >>> import torch
    >>> from funcnets import layers
    >>> tuple(layers.flatten().apply({}, {}, torch.zeros(2, 3, 4, 5))[0].shape)
    (2, 60)
    """
    return function_layer("flatten()", lambda x: rearrange(x, "n c h w -> n (c h w)"), ranks=(4,))
