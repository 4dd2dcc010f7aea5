"""Average pooling of NCHW feature maps with windows that tile them, in C++ for each window size.

ATen's kernel reads an NCHW map pixel by pixel (256×6×24×24, 2×2 windows, on two cores with AVX-512,
milliseconds of pooling and its derivative: 0.81 and 0.84 against 0.06 and 0.06; in bfloat16 0.87
and 1.32 against 0.09 and 0.11). Its kernel for channels_last is fast.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.kernels import avg_pool as kernel
from funcnets.compiler.kernels import build
from funcnets.compiler.lowerings.table import Lowering

MAX_WINDOW = 4  # pixels

aten = torch.ops.aten


def is_faster(
    x: Tensor,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> bool:
    """True if `x` is an NCHW map on the CPU, and small windows cover each pixel exactly once."""
    height, width = kernel.window(window)
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype in build.MEMORY_TYPES
        and x.is_contiguous()
        and x.numel() > 0
        and height * width <= MAX_WINDOW
        and (not stride or kernel.window(stride) == (height, width))
        and not any(padding)
        and x.shape[2] % height == x.shape[3] % width == 0
        and divisor_override is None
        and build.is_available()
    )


def prepare(x: Tensor, window: Sequence[int], *how: Any) -> None:
    """Begin to compile the kernel for this window."""
    kernel.KERNEL.begin(x.dtype, *kernel.window(window))


def forward(x: Tensor, window: Sequence[int], *how: Any) -> Tensor:
    """Return `aten.avg_pool2d`."""
    result: Tensor = kernel.AVG_POOL(x, window)
    return result


def backward(grad: Tensor, x: Tensor, window: Sequence[int], *how: Any) -> Tensor:
    """Return `aten.avg_pool2d_backward`."""
    result: Tensor = kernel.AVG_POOL_BACKWARD(grad, window)
    return result


FORWARD = Lowering("avg_pool.forward", aten.avg_pool2d.default, is_faster, forward, prepare)
BACKWARD = Lowering(
    "avg_pool.backward",
    aten.avg_pool2d_backward.default,
    lambda grad, x, *how: is_faster(x, *how),
    backward,
    lambda grad, x, *how: prepare(x, *how),
)
