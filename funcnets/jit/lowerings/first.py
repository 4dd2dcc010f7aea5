"""Convolutions of one channel to many, as first layers of grey images are, in C++.

oneDNN makes vectors of input channels, or leaves a map in blocks that must be put in order again.
This makes them of output channels, and gives maps in channels_last.  Milliseconds on two cores with
AVX2, float32, oneDNN's in channels_last and these: 11×11 kernels, stride 4, to 96 channels of
54×54, batch 128, 101 and 54, gradient of the weight 84 and 83; 7×7, stride 2, to 64 of 48×48, batch
256, 86 and 35, 59 and 45; of 14×14 8.4 and 5.5, 4.8 and 4.1; 3×3 to 64 of 224×224, batch 128, 164
and 116, 352 and 160.  AVX-512, for which oneDNN has kernels of its own, was not measured, and is
left to it.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcnets.jit import native
from funcnets.jit.lowerings import layout
from funcnets.jit.lowerings.convolution import both_ways, geometry, is_plain_convolution
from funcnets.jit.lowerings.layout import channels_last, has_avx512, in_format_of
from funcnets.jit.native import SCALARS
from funcnets.jit.operators import define

BLOCK_BYTES = 128  # of output channels, in two vectors, at a time
TOGETHER = 6  # pixels of a row, or taps of a kernel; with two vectors, in 12 of 16 registers
PARTS = 16  # sums of a weight's gradient, whatever the number of threads

aten = torch.ops.aten


class Kernel(NamedTuple):
    """What first.cpp is compiled for."""

    rows: int
    columns: int
    down: int  # stride
    across: int
    top: int  # padding
    left: int


@functools.cache
def library(kernel: Kernel, dtype: torch.dtype) -> native.Library | None:
    """The convolutions with such kernels, if there is a compiler."""
    numbers = kernel._asdict() | {"together": TOGETHER, "parts": PARTS}
    constants = {name.upper(): number for name, number in numbers.items()}
    path = Path(__file__).with_name("first.cpp")
    return native.begin_for(path, dtype, native.VECTORS, **constants)


def is_faster(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> bool:
    """Whether a convolution of these arguments is done faster so, and can be."""
    usual = is_plain_convolution(x, weight, stride, padding, *rest) and x.dtype in SCALARS
    if not usual or x.shape[1] > 1 or has_avx512():
        return False
    sizes = geometry(x, weight, stride, padding)
    return (
        len(weight) * x.itemsize % BLOCK_BYTES == 0
        and sizes.output[0] > 0
        and min(sizes.output[1], math.prod(sizes.kernel)) >= TOGETHER
        and library(Kernel(*sizes.kernel, *stride, *padding), x.dtype) is not None
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """`aten.convolution` where `is_faster`; channels_last."""
    stride, padding, *_ = how
    return CONVOLVE(x, weight, bias, stride, padding)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten.convolution_backward` where `is_faster`.

    The last argument is the mask of what is wanted: gradients of input, weight and bias.
    """
    *how, mask = rest
    stride, padding, *_ = how
    grad_x = layout.input_gradient(grad, x, weight, *how) if mask[0] else None
    grad_weight = None
    if mask[1]:
        grad_weight = WEIGHT_GRADIENT(grad, x, weight.shape[2:], stride, padding)
        grad_weight = in_format_of(weight, grad_weight)
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A convolution of images of one channel, channels_last."""
    result = _empty(x, weight, bias, stride, padding)
    taps = rearrange(weight, "o 1 h w -> h w o").contiguous()
    flat = None if bias is None else bias.contiguous()
    compiled = library(Kernel(*weight.shape[2:], *stride, *padding), x.dtype)
    sizes = _sizes(x, result)
    native.call(compiled, "convolve", x.contiguous(), taps, flat, result, sizes=sizes)
    return result


def weight_gradient(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The gradient of the weight of a convolution of images of one channel."""
    sums = x.new_empty(PARTS, *kernel, grad.shape[1])
    compiled = library(Kernel(*kernel, *stride, *padding), x.dtype)
    maps = x.contiguous(), channels_last(grad)
    native.call(compiled, "weight_gradient", *maps, sums, sizes=_sizes(x, grad))
    return rearrange(sums.sum(0), "h w o -> o 1 h w").contiguous()


def _sizes(x: Tensor, result: Tensor) -> tuple[int, ...]:
    return (len(x), result.shape[1], *x.shape[2:], *result.shape[2:])


def _empty(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    side = geometry(x, weight, stride, padding).output
    return x.new_empty(len(x), *side, len(weight)).permute(0, 3, 1, 2)


CONVOLVE = define(
    "one_channel(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    convolve,
    _empty,
)
WEIGHT_GRADIENT = define(
    "one_channel_weight_gradient(Tensor grad, Tensor x, int[] kernel, int[] stride, int[] padding) "
    "-> Tensor",
    weight_gradient,
    lambda grad, x, kernel, *how: x.new_empty(grad.shape[1], 1, *kernel),
)
FORWARD, BACKWARD = both_ways("first.", is_faster, forward, backward)
