"""Convolutions of few channels in C++."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build

VECTOR_BYTES = 32
MOST_TOGETHER = 3  # vectors of a row at a time
MOST_SUMS = 12  # at a time; four registers are left for what they are made of
PARTS = 16  # sums of a weight's gradient, whatever the number of threads


class Sizes(NamedTuple):
    """Those of a convolution of stride 1, without padding, as few_channels.cpp calls them."""

    inputs: int
    outputs: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self.height - self.rows + 1, self.width - self.columns + 1


def sizes(x: Tensor, weight: Tensor) -> Sizes:
    """The sizes of a convolution."""
    outputs, inputs, rows, columns = weight.shape
    return Sizes(inputs, outputs, x.shape[2], x.shape[3], rows, columns)


@functools.cache
def library(given: Sizes, dtype: torch.dtype) -> build.Library | None:
    """The convolution of these sizes, compiled, if there is a compiler."""
    vectors = -(-given.output[1] // (VECTOR_BYTES // build.computed(dtype).itemsize))
    pieces = -(-vectors // MOST_TOGETHER)
    together = -(-vectors // pieces)
    divisors = (n for n in range(1, MOST_SUMS // together + 1) if given.outputs % n == 0)
    numbers = given._asdict() | {"together": together, "block": max(divisors), "parts": PARTS}
    constants = {name.upper(): value for name, value in numbers.items()}
    return build.begin_for(Path(__file__).with_name("few_channels.cpp"), dtype, **constants)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1, without padding."""
    result = _empty(x, weight, bias)
    flat = None if bias is None else bias.contiguous()
    compiled = library(sizes(x, weight), x.dtype)
    tensors = x.contiguous(), weight.contiguous(), flat, result
    build.call(compiled, "convolve", *tensors, sizes=[len(x)])
    return result


def input_gradient(grad: Tensor, weight: Tensor, side: Sequence[int]) -> Tensor:
    """The gradient of the input, of these sides, of a convolution of stride 1, without padding."""
    result = _empty_input(grad, weight, side)
    compiled = library(sizes(result, weight), grad.dtype)
    tensors = grad.contiguous(), weight.contiguous(), result
    build.call(compiled, "input_gradient", *tensors, sizes=[len(grad)])
    return result


def _empty_input(grad: Tensor, weight: Tensor, side: Sequence[int]) -> Tensor:
    return grad.new_empty(len(grad), weight.shape[1], *side)


def weight_gradient(grad: Tensor, x: Tensor, kernel: Sequence[int]) -> Tensor:
    """The gradient of the weight of a convolution of stride 1, without padding."""
    shape = (PARTS, grad.shape[1], x.shape[1], *kernel)
    sums = x.new_empty(shape, dtype=build.computed(x.dtype))
    compiled = library(sizes(x, sums[0]), x.dtype)
    tensors = x.contiguous(), grad.contiguous(), sums
    build.call(compiled, "weight_gradient", *tensors, sizes=[len(x)])
    return sums.sum(0).to(x.dtype)


def _empty(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), weight.shape[0], *sizes(x, weight).output)


CONVOLVE = define("few_channels(Tensor x, Tensor weight, Tensor? bias) -> Tensor", convolve, _empty)
INPUT_GRADIENT = define(
    "few_channels_input_gradient(Tensor grad, Tensor weight, int[] side) -> Tensor",
    input_gradient,
    _empty_input,
)
WEIGHT_GRADIENT = define(
    "few_channels_weight_gradient(Tensor grad, Tensor x, int[] kernel) -> Tensor",
    weight_gradient,
    lambda grad, x, kernel: x.new_empty(grad.shape[1], x.shape[1], *kernel),
)
