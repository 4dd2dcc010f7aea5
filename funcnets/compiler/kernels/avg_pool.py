"""Average pooling in C++, of NCHW feature maps by windows that tile them."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build

KERNEL = build.Kernel(
    Path(__file__).with_suffix(".cpp"),
    lambda dtype, height, width: build.constants(HEIGHT=height, WIDTH=width),
)


def window(kernel: Sequence[int]) -> tuple[int, int]:
    """Return height and width of a window; ATen takes one number for both."""
    return kernel[0], kernel[-1]


def avg_pool(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """Return the means of the windows of an NCHW feature map: (N, C, H / kh, W / kw)."""
    result = _empty_result(x, kernel)
    KERNEL.call("avg_pool", window(kernel), x.contiguous(), result, sizes=_sizes(result))
    return result


def avg_pool_backward(grad: Tensor, kernel: Sequence[int]) -> Tensor:
    """Return the gradient of the input of `avg_pool` from that of its result."""
    result = _empty_input(grad, kernel)
    KERNEL.call("avg_pool_backward", window(kernel), grad.contiguous(), result, sizes=_sizes(grad))
    return result


def _sizes(pooled: Tensor) -> tuple[int, int, int]:
    images, channels, height, width = pooled.shape
    return images * channels, height, width


def _empty_result(x: Tensor, kernel: Sequence[int]) -> Tensor:
    sides = (n // k for n, k in zip(x.shape[2:], window(kernel), strict=True))
    return x.new_empty(*x.shape[:2], *sides)


def _empty_input(grad: Tensor, kernel: Sequence[int]) -> Tensor:
    sides = (n * k for n, k in zip(grad.shape[2:], window(kernel), strict=True))
    return grad.new_empty(*grad.shape[:2], *sides)


AVG_POOL = define("avg_pool(Tensor x, int[] kernel) -> Tensor", avg_pool, _empty_result)
AVG_POOL_BACKWARD = define(
    "avg_pool_backward(Tensor grad, int[] kernel) -> Tensor", avg_pool_backward, _empty_input
)
