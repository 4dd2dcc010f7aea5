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


def conv_transpose2d(
    channels: int,
    kernel: Size,
    stride: Size = 1,
    padding: Size = 0,
    *,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    bias: bool = True,
    initializer: Initializer | None = None,
    bias_initializer: Initializer | None = None,
) -> Layer:
    """Return a transposed convolution, (N, C, H, W) -> (N, channels, H', W').

    It computes what `torch.nn.ConvTranspose2d` does, the transpose of a convolution with these
    arguments, with H' = 1 + (H - 1) · stride - 2 · padding + dilation · (kernel - 1) +
    output_padding.  The `weight` has the shape (C, channels / groups, kh, kw).

    Args:
        channels: number of output channels.
        kernel: height and width of the kernel, in pixels.
        stride: step between two inputs, in pixels of the output.
        padding: rows and columns that are cut off each side of the output.
        output_padding: rows and columns added below and on the right of the output; less than the
            stride or the dilation.
        dilation: distance between two pixels to which the kernel writes.
        groups: number of groups into which input and output channels are divided.
        bias: True for a bias.
        initializer: draws a weight (channels, C / groups, kh, kw), as for `conv2d`, which is then
            transposed; None for Xavier uniform.
        bias_initializer: draws `bias` (channels,); None for uniform in ±1/√fan_in.

    Raises ValueError for a number that is too small or not whole; LayerError for channels that
    can't be divided into groups, and for images too small for the padding.

    >>> import torch
    >>> from funcnets import layers, random
    >>> up, x = layers.conv_transpose2d(8, 2, stride=2), torch.zeros(1, 3, 5, 5)
    >>> params, state = up.init(random.key(0), x)
    >>> tuple(params["weight"].shape), tuple(up.apply(params, state, x)[0].shape)
    ((3, 8, 2, 2), (1, 8, 10, 10))
    """
    kind = format_kind(
        "conv_transpose2d", channels, kernel, stride=(stride, 1), padding=(padding, 0),
        output_padding=(output_padding, 0), dilation=(dilation, 1), groups=(groups, 1),
        bias=(bias, True),
    )  # fmt: skip
    check_counts(kind, channels=channels, groups=groups)
    check_sizes(kind, 1, kernel=kernel, stride=stride, dilation=dilation)
    check_sizes(kind, 0, padding=padding, output_padding=output_padding)
    steps = zip(pair(output_padding), pair(stride), pair(dilation), strict=True)
    if any(more >= max(s, d) for more, s, d in steps):
        raise ValueError(
            f"{kind}: output_padding is {output_padding!r}; expected less than stride or dilation"
        )
    if channels % groups:
        raise ValueError(f"{kind}: channels is {channels}; expected a multiple of {groups} groups")

    def size(side: int, axis: int) -> int:
        s, p, more, d, k = (
            pair(each)[axis] for each in (stride, padding, output_padding, dilation, kernel)
        )
        return (side - 1) * s - 2 * p + d * (k - 1) + more + 1

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        if x.shape[1] % groups:
            raise LayerError(
                f"{kind}: {x.shape[1]} channels in and {channels} out can't be convolved in "
                f"{groups} groups: channels must be a multiple of groups"
            )
        shape = (channels, x.shape[1] // groups, *pair(kernel))
        params = draw_weights(key, shape, x, initializer, bias, bias_initializer)
        grouped = params["weight"].unflatten(0, (groups, channels // groups))
        return params | {"weight": grouped.transpose(1, 2).flatten(0, 1).contiguous()}, {}

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        weight = params["weight"]
        expected = (weight.shape[0], channels // groups, *pair(kernel))
        check_weight(kind, x, weight, expected, weight.shape[0], "channels")
        sides = [size(side, axis) for axis, side in enumerate(x.shape[2:])]
        if min(sides) < 1:
            raise LayerError(
                f"{kind}: an input of {x.shape[2]}×{x.shape[3]} gives an output of "
                f"{sides[0]}×{sides[1]}: the image is too small for the padding"
            )
        bias_value = params["bias"] if bias else None
        y = F.conv_transpose2d(
            x, weight, bias_value, stride, padding, output_padding, groups, dilation
        )
        return y, {}

    return leaf(kind, init, apply, ranks=(4,), params=weight_names(bias))
