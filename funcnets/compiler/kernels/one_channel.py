"""Convolutions of one input channel in C++."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels.cpu import channels_last
from funcnets.compiler.kernels.geometry import geometry

BLOCK_BYTES = 128  # of output channels, in two vectors, at a time
TOGETHER = 6  # pixels of a row, or taps of a kernel; with two vectors, in 12 of 16 registers
PARTS = 16  # sums of a weight's gradient, whatever the number of threads


class Kernel(NamedTuple):
    """What one_channel.cpp is compiled for."""

    rows: int
    columns: int
    down: int  # stride
    across: int
    top: int  # padding
    left: int


@functools.cache
def library(kernel: Kernel, dtype: torch.dtype) -> build.Library | None:
    """The convolutions with such kernels, if there is a compiler."""
    numbers = kernel._asdict() | {"together": TOGETHER, "parts": PARTS}
    constants = {name.upper(): number for name, number in numbers.items()}
    path = Path(__file__).with_name("one_channel.cpp")
    return build.begin_for(path, dtype, build.VECTORS, **constants)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A convolution of images of one channel, channels_last."""
    result = _empty(x, weight, bias, stride, padding)
    taps = rearrange(weight, "o 1 h w -> h w o").contiguous()
    flat = None if bias is None else bias.contiguous()
    compiled = library(Kernel(*weight.shape[2:], *stride, *padding), x.dtype)
    sizes = _sizes(x, result)
    build.call(compiled, "convolve", x.contiguous(), taps, flat, result, sizes=sizes)
    return result


def weight_gradient(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The gradient of the weight of a convolution of images of one channel."""
    sums = x.new_empty(PARTS, *kernel, grad.shape[1])
    compiled = library(Kernel(*kernel, *stride, *padding), x.dtype)
    maps = x.contiguous(), channels_last(grad)
    build.call(compiled, "weight_gradient", *maps, sums, sizes=_sizes(x, grad))
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
