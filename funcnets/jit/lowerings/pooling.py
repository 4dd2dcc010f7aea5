"""Average pools whose windows don't overlap, as element-wise operations on slices of the map.

ATen's kernel goes through the pixels of a plain map one by one (256×6×28×28, 2×2 windows, in
milliseconds: 2.5 and back 3.5, against 0.8 and 0.6).  For channels_last it has a quick one.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.jit.lowerings.recorder import Lowering

MOST_SLICES = 4  # pixels of a window: each is a pass

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
        and x.is_contiguous()
        and x.numel() > 0
        and height * width <= MOST_SLICES
        and (not stride or _sides(stride) == (height, width))
        and not any(padding)
        and x.shape[2] % height == x.shape[3] % width == 0
        and divisor_override is None
    )


def _sides(size: Sequence[int]) -> tuple[int, int]:
    return size[0], size[-1]


def _slices(x: Tensor, kernel: Sequence[int]) -> Iterator[Tensor]:
    """Of each window the same pixel: as many maps of the output's shape as a window has pixels."""
    height, width = _sides(kernel)
    for i, j in itertools.product(range(height), range(width)):
        yield x[:, :, i::height, j::width]


def average_forward(x: Tensor, kernel: Sequence[int], *how: Any) -> Tensor:
    """`aten.avg_pool2d` where `is_apart`."""
    first, *rest = _slices(x, kernel)
    total = first
    for part in rest:
        total = total + part
    return total / (len(rest) + 1)


def average_backward(grad: Tensor, x: Tensor, kernel: Sequence[int], *how: Any) -> Tensor:
    """`aten.avg_pool2d_backward` where `is_apart`."""
    result = torch.empty_like(x)
    parts = list(_slices(result, kernel))
    share = grad / len(parts)
    for part in parts:
        part.copy_(share)
    return result


AVERAGE_FORWARD = Lowering(
    "pooling.average_forward", aten.avg_pool2d.default, is_apart, average_forward
)
AVERAGE_BACKWARD = Lowering(
    "pooling.average_backward",
    aten.avg_pool2d_backward.default,
    lambda grad, x, *how: is_apart(x, *how),
    average_backward,
)
