"""Max pools on channels_last maps that keep where a maximum is as a byte, and gather gradients.

ATen keeps the place of each in eight bytes, and scatters.  `funcnets bench alexnet --lowerings`
times both.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels.build import STORED

MOST_TAPS = 256  # of a window, that a byte can tell apart


def is_usual(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> bool:
    """Whether it is a max pool of a channels_last map on the CPU that can be done so."""
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype in STORED
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and set(dilation) == {1}
        and len(kernel) == len(stride) == len(padding) == 2
        and math.prod(kernel) <= MOST_TAPS
        and library(x.dtype) is not None
    )


@functools.cache
def library(dtype: torch.dtype) -> build.Library | None:
    """The pools in C++, if there is a compiler."""
    return build.begin_for(Path(__file__).with_name("max_pool.cpp"), dtype, build.VECTORS)


def maxima(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    side: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Maxima of windows, (N, C, *side), and the taps at which they are, as bytes."""
    results = _empty_maxima(x, kernel, stride, padding, side)
    x = x.contiguous(memory_format=torch.channels_last)
    sizes = (*x.shape, *side, *kernel, *stride, *padding)
    build.call(library(x.dtype), "maxima", x, *results, sizes=sizes)
    return results


def gather(
    grad: Tensor,
    where: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    side: Sequence[int],
) -> Tensor:
    """The gradient of a max pool's input, (N, C, *side), from where its maxima were."""
    result = _empty_map(grad, side)
    given = (each.contiguous(memory_format=torch.channels_last) for each in (grad, where))
    sizes = (*result.shape, *grad.shape[2:], *kernel, *stride, *padding)
    build.call(library(grad.dtype), "gather", *given, result, sizes=sizes)
    return result


def _empty_map(x: Tensor, side: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    result = x.new_empty(len(x), *side, x.shape[1], dtype=dtype or x.dtype)
    return result.permute(0, 3, 1, 2)


def _empty_maxima(
    x: Tensor, kernel: object, stride: object, padding: object, side: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return _empty_map(x, side), _empty_map(x, side, torch.uint8)


MAXIMA = define(
    "maxima(Tensor x, int[] kernel, int[] stride, int[] padding, int[] side) -> (Tensor, Tensor)",
    maxima,
    _empty_maxima,
)
GATHER = define(
    "gather_maxima(Tensor grad, Tensor where, int[] kernel, int[] stride, int[] padding, "
    "int[] side) -> Tensor",
    gather,
    lambda grad, where, kernel, stride, padding, side: _empty_map(grad, side),
)
