"""Convolutions of feature maps, (N, C, H, W)."""

import torch.nn.functional as F
from torch import Tensor

from funcnets.core import Layer, LayerError, Params, State
from funcnets.initializers import Initializer
from funcnets.layers._arguments import Size, check_counts, check_sizes, format_kind, pair
from funcnets.layers._leaf import leaf
from funcnets.layers._weights import check_image_size, check_weight, draw_weights, weight_names


def conv2d(
    channels: int,
    kernel: Size,
    stride: Size = 1,
    padding: Size = 0,
    *,
    dilation: Size = 1,
    groups: int = 1,
    bias: bool = True,
    initializer: Initializer | None = None,
    bias_initializer: Initializer | None = None,
) -> Layer:
    """Return a two-dimensional convolution, (N, C, H, W) -> (N, channels, H', W').

    It computes what `torch.nn.Conv2d` does, a cross-correlation.

    Args:
        channels: number of output channels.
        kernel: height and width of the kernel, in pixels.
        stride: step between two outputs, in pixels of the input.
        padding: rows and columns of zeros on each side of the image.
        dilation: distance between two pixels that the kernel reads.
        groups: number of groups into which input and output channels are divided.
        bias: True for a bias.
        initializer: draws `weight` (channels, C / groups, kh, kw); None for Xavier uniform.
        bias_initializer: draws `bias` (channels,); None for uniform in ±1/√fan_in.

    Raises ValueError for a number that is too small or not whole, and LayerError, from `init`, for
    channels that can't be divided into groups.

    >>> import torch
    >>> from funcnets import layers, random
    >>> conv, x = layers.conv2d(64, 7, stride=2, padding=3), torch.zeros(1, 3, 32, 32)
    >>> params, state = conv.init(random.key(0), x)
    >>> tuple(params["weight"].shape), tuple(params["bias"].shape)
    ((64, 3, 7, 7), (64,))
    >>> tuple(conv.apply(params, state, x)[0].shape)
    (1, 64, 16, 16)
    """
    kind = format_kind(
        "conv2d", channels, kernel, stride=(stride, 1), padding=(padding, 0),
        dilation=(dilation, 1), groups=(groups, 1), bias=(bias, True),
    )  # fmt: skip
    check_counts(kind, channels=channels, groups=groups)
    check_sizes(kind, 1, kernel=kernel, stride=stride, dilation=dilation)
    check_sizes(kind, 0, padding=padding)
    extent = tuple(d * (k - 1) + 1 for d, k in zip(pair(dilation), pair(kernel), strict=True))

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        if channels % groups or x.shape[1] % groups:
            raise LayerError(
                f"{kind}: {x.shape[1]} channels in and {channels} out can't be convolved in "
                f"{groups} groups: channels must be a multiple of groups"
            )
        shape = (channels, x.shape[1] // groups, *pair(kernel))
        return draw_weights(key, shape, x, initializer, bias, bias_initializer), {}

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        weight = params["weight"]
        channels_per_group = weight.shape[1]
        expected = (channels, channels_per_group, *pair(kernel))
        check_weight(kind, x, weight, expected, channels_per_group * groups, "channels")
        check_image_size(kind, x, extent, pair(padding))
        bias_value = params["bias"] if bias else None
        return F.conv2d(x, weight, bias_value, stride, padding, dilation, groups), {}

    return leaf(kind, init, apply, ranks=(4,), params=weight_names(bias))
