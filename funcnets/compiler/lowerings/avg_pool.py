"""Average pools whose windows don't overlap, in C++ for the size of the window.

ATen's kernel goes through the pixels of a plain map one by one (256×6×24×24, 2×2 windows, on two
cores with AVX-512, milliseconds: 0.81 and back 0.84 against 0.06 and 0.06; in bfloat16 0.87 and
1.32 against 0.09 and 0.11).  For channels_last it has a quick one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.kernels.avg_pool import AVERAGE, SPREAD, _sides, library
from funcnets.compiler.kernels.build import STORED
from funcnets.compiler.lowerings.table import Lowering

MOST_PIXELS = 4  # of a window

aten = torch.ops.aten


def is_apart(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> bool:
    """Whether it is a plain map on the CPU, and windows cover it each pixel once."""
    height, width = _sides(kernel)
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype in STORED
        and x.is_contiguous()
        and x.numel() > 0
        and height * width <= MOST_PIXELS
        and (not stride or _sides(stride) == (height, width))
        and not any(padding)
        and x.shape[2] % height == x.shape[3] % width == 0
        and divisor_override is None
        and library(height, width, x.dtype) is not None
    )


def average_forward(x: Tensor, kernel: Sequence[int], *how: Any) -> Tensor:
    """`aten.avg_pool2d` where `is_apart`."""
    return AVERAGE(x, kernel)


def average_backward(grad: Tensor, x: Tensor, kernel: Sequence[int], *how: Any) -> Tensor:
    """`aten.avg_pool2d_backward` where `is_apart`."""
    return SPREAD(grad, kernel)


AVERAGE_FORWARD = Lowering(
    "pooling.average_forward", aten.avg_pool2d.default, is_apart, average_forward
)
AVERAGE_BACKWARD = Lowering(
    "pooling.average_backward",
    aten.avg_pool2d_backward.default,
    lambda grad, x, *how: is_apart(x, *how),
    average_backward,
)
