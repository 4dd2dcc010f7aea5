"""Pooling of feature maps, (N, C, H, W)."""

from collections.abc import Callable

import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from funcnets.core import Layer
from funcnets.layers._arguments import Size, check_sizes, format_kind, pair
from funcnets.layers._leaf import function_layer
from funcnets.layers._weights import check_image_size


def max_pool(
    kernel: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
) -> Layer:
    """Return the largest value of each window, (N, C, H, W) -> (N, C, H', W').

    It computes what `torch.nn.MaxPool2d` does.

    Args:
        kernel: height and width of the window, in pixels.
        stride: step between two windows; None for the kernel's size.
        padding: rows and columns of -∞ on each side of the image, at most half of the kernel.
        ceil_mode: True if H' and W' are rounded up.

    Raises ValueError for a size that is too small or not whole, or padding beyond half the kernel.

    >>> import torch
    >>> from funcnets import layers
    >>> layers.max_pool(2).apply({}, {}, torch.arange(16.0).reshape(1, 1, 4, 4))[0]
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    return _pool("max_pool", F.max_pool2d, kernel, stride, padding, ceil_mode)


def avg_pool(
    kernel: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
) -> Layer:
    """Return the mean of each window, (N, C, H, W) -> (N, C, H', W').

    It computes what `torch.nn.AvgPool2d` does; zeros of the padding count in the mean.

    Args:
        kernel: height and width of the window, in pixels.
        stride: step between two windows; None for the kernel's size.
        padding: rows and columns of zeros on each side of the image, at most half of the kernel.
        ceil_mode: True if H' and W' are rounded up.

    Raises ValueError for a size that is too small or not whole, or padding beyond half the kernel.

    >>> import torch
    >>> from funcnets import layers
    >>> layers.avg_pool(2).apply({}, {}, torch.arange(16.0).reshape(1, 1, 4, 4))[0]
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    return _pool("avg_pool", F.avg_pool2d, kernel, stride, padding, ceil_mode)


def _pool(
    name: str,
    function: Callable[..., Tensor],
    kernel: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
) -> Layer:
    stride = kernel if stride is None else stride
    kind = format_kind(
        name, kernel, stride=(stride, kernel), padding=(padding, 0), ceil_mode=(ceil_mode, False)
    )
    check_sizes(kind, 1, kernel=kernel, stride=stride)
    check_sizes(kind, 0, padding=padding)
    if any(2 * p > k for p, k in zip(pair(padding), pair(kernel), strict=True)):
        raise ValueError(f"{kind}: padding is {padding!r}; expected half of the kernel or less")

    def pool(x: Tensor) -> Tensor:
        check_image_size(kind, x, pair(kernel), pair(padding))
        return function(x, kernel, stride, padding, ceil_mode=ceil_mode)

    return function_layer(kind, pool, ranks=(4,))


def adaptive_avg_pool(size: Size) -> Layer:
    """Return the mean over windows chosen so that the output is (N, C, size, size).

    It computes what `torch.nn.AdaptiveAvgPool2d` does.

    Raises ValueError for a size that is too small or not whole.

    >>> import torch
    >>> from funcnets import layers
    >>> tuple(layers.adaptive_avg_pool(7).apply({}, {}, torch.zeros(1, 3, 13, 9))[0].shape)
    (1, 3, 7, 7)
    """
    kind = format_kind("adaptive_avg_pool", size)
    check_sizes(kind, 1, size=size)
    if size in (1, (1, 1)):  # torch sets the strides of this result, for which vmap has no rule
        return function_layer(kind, _mean_over_image, ranks=(4,))
    return function_layer(kind, lambda x: F.adaptive_avg_pool2d(x, size), ranks=(4,))


def global_avg_pool() -> Layer:
    """Return the mean of each channel over the image, (N, C, H, W) -> (N, C, 1, 1)."""
    return function_layer("global_avg_pool()", _mean_over_image, ranks=(4,))


def _mean_over_image(x: Tensor) -> Tensor:
    return reduce(x, "n c h w -> n c 1 1", "mean")
