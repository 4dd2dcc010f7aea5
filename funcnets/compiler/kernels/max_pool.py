"""Max pooling in C++, of channels_last feature maps, with positions of maxima in one byte each.

ATen keeps each position in eight bytes, and its gradient scatters; this one gathers. `funcnets
bench alexnet --lowerings` times both.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build

MAX_TAPS = 256  # of a window: a byte holds no larger index

KERNEL = build.Kernel(Path(__file__).with_suffix(".cpp"), lambda dtype: build.VECTORS)


def is_supported(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> bool:
    """True if the kernel can do this max pooling, once `x` is channels_last; needs a compiler."""
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype in build.MEMORY_TYPES
        and x.numel() > 0
        and set(dilation) == {1}
        and len(kernel) == len(stride) == len(padding) == 2
        and math.prod(kernel) <= MAX_TAPS
        and build.is_available()
    )


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    side: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows (N, C, *side) and their taps, as uint8; both channels_last."""
    maxima, taps = _empty_results(x, kernel, stride, padding, side)
    sizes = (*x.shape, *side, *kernel, *stride, *padding)
    x = x.contiguous(memory_format=torch.channels_last)
    KERNEL.call("max_pool", (), x, maxima, taps, sizes=sizes)
    return maxima, taps


def max_pool_backward(
    grad: Tensor,
    taps: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    side: Sequence[int],
) -> Tensor:
    """Return the gradient of the input (N, C, *side) from that of the maxima, and their taps."""
    result = _empty_map(grad, side)
    sizes = (*result.shape, *grad.shape[2:], *kernel, *stride, *padding)
    grad, taps = (x.contiguous(memory_format=torch.channels_last) for x in (grad, taps))
    KERNEL.call("max_pool_backward", (), grad, taps, result, sizes=sizes)
    return result


def _empty_map(x: Tensor, side: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    result = x.new_empty(len(x), *side, x.shape[1], dtype=dtype or x.dtype)
    return result.permute(0, 3, 1, 2)


def _empty_results(
    x: Tensor, kernel: object, stride: object, padding: object, side: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return _empty_map(x, side), _empty_map(x, side, torch.uint8)


MAX_POOL = define(
    "max_pool(Tensor x, int[] kernel, int[] stride, int[] padding, int[] side) -> (Tensor, Tensor)",
    max_pool,
    _empty_results,
)
MAX_POOL_BACKWARD = define(
    "max_pool_backward(Tensor grad, Tensor taps, int[] kernel, int[] stride, int[] padding, "
    "int[] side) -> Tensor",
    max_pool_backward,
    lambda grad, taps, kernel, stride, padding, side: _empty_map(grad, side),
)
