"""Convolutions of few channels in C++, of stride 1 and without padding, on NCHW feature maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build

VECTOR_BYTES = 32
MAX_VECTORS_PER_BLOCK = 3  # of a row
MAX_SUMS_PER_BLOCK = 12  # vectors; of 16 registers four are left for their operands
PARTIAL_SUMS = 16  # of a weight's gradient, for any number of threads


class Shape(NamedTuple):
    """Sizes of a convolution, which few_channels.cpp is compiled for."""

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


def shape_of(x: Tensor, weight: Tensor) -> Shape:
    """Return the sizes of a convolution of `x` (N, C, H, W) with `weight` (O, C, kh, kw)."""
    outputs, inputs, rows, columns = weight.shape
    return Shape(inputs, outputs, x.shape[2], x.shape[3], rows, columns)


def _declarations(dtype: torch.dtype, *sizes: int) -> str:
    shape = Shape(*sizes)
    vectors = -(-shape.output[1] // (VECTOR_BYTES // build.register_dtype(dtype).itemsize))
    blocks = -(-vectors // MAX_VECTORS_PER_BLOCK)
    block = -(-vectors // blocks)
    divisors = (n for n in range(1, MAX_SUMS_PER_BLOCK // block + 1) if shape.outputs % n == 0)
    return build.constants(
        **{name.upper(): size for name, size in shape._asdict().items()},
        VECTORS_PER_BLOCK=block,
        OUTPUTS_PER_BLOCK=max(divisors),
        PARTIAL_SUMS=PARTIAL_SUMS,
    )


KERNEL = build.Kernel(Path(__file__).with_suffix(".cpp"), _declarations)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of `x` (N, C, H, W) with `weight` (O, C, kh, kw): (N, O, H', W')."""
    result = _empty_result(x, weight, bias)
    bias = None if bias is None else bias.contiguous()
    tensors = x.contiguous(), weight.contiguous(), bias, result
    KERNEL.call("convolution", shape_of(x, weight), *tensors, sizes=[len(x)])
    return result


def input_gradient(grad: Tensor, weight: Tensor, side: Sequence[int]) -> Tensor:
    """Return the gradient of the input, of height and width `side`, from that of the output."""
    result = _empty_input(grad, weight, side)
    tensors = grad.contiguous(), weight.contiguous(), result
    KERNEL.call("input_gradient", shape_of(result, weight), *tensors, sizes=[len(grad)])
    return result


def weight_gradient(grad: Tensor, x: Tensor, kernel: Sequence[int]) -> Tensor:
    """Return the gradient of the weight, of height and width `kernel`, from that of the output."""
    shape = (PARTIAL_SUMS, grad.shape[1], x.shape[1], *kernel)
    sums = x.new_empty(shape, dtype=build.register_dtype(x.dtype))
    tensors = x.contiguous(), grad.contiguous(), sums
    KERNEL.call("weight_gradient", shape_of(x, sums[0]), *tensors, sizes=[len(x)])
    return sums.sum(0).to(x.dtype)


def _empty_result(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), weight.shape[0], *shape_of(x, weight).output)


def _empty_input(grad: Tensor, weight: Tensor, side: Sequence[int]) -> Tensor:
    return grad.new_empty(len(grad), weight.shape[1], *side)


CONVOLUTION = define(
    "few_channels(Tensor x, Tensor weight, Tensor? bias) -> Tensor", convolution, _empty_result
)
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
