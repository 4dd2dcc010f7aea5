"""Convolutions of few channels, as LeNet's are, in C++ that is compiled for their sizes.

oneDNN makes vectors of channels, of which there are too few here.  This makes them of a row's
pixels.  Milliseconds on two cores with AVX2, float32, batch 256, by `funcnets bench lenet_bn
--lowerings`, ATen's and these: 1→6 channels of 28×28, 5×5 kernels: 1.80 and 0.70, gradient of the
weight 4.26 and 0.84; 6→16 of 12×12: 1.03 and 0.84.  With padding, or kernels of 3×3, such loops
were faster for some channels and slower for others: those stay.  With AVX-512: 1→6 channels 1.41
and 0.49, gradient of the weight 0.97 and 0.57; 6→16: gradient of the input 1.30 and 0.61; in
bfloat16 0.76 and 0.49, 1.00 and 0.57; 0.59 and 0.52.  There the gradient of the weight is faster by
oneDNN from two channels on, 0.53 against 0.76, in bfloat16 0.41.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets.jit import native
from funcnets.jit.lowerings import layout
from funcnets.jit.lowerings.convolution import both_ways, is_plain_convolution
from funcnets.jit.lowerings.layout import has_avx512, in_format_of
from funcnets.jit.native import STORED
from funcnets.jit.operators import define

MOST_PAIRS = 96  # of an input and an output channel
LARGEST_SIDE = 32  # of the input
FEWEST_TAPS, LARGEST_KERNEL = 25, 7
VECTOR_BYTES = 32
MOST_TOGETHER = 3  # vectors of a row at a time
MOST_SUMS = 12  # at a time; four registers are left for what they are made of
PARTS = 16  # sums of a weight's gradient, whatever the number of threads

aten = torch.ops.aten


class Sizes(NamedTuple):
    """Those of a convolution of stride 1, without padding, as few.cpp calls them."""

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
def library(given: Sizes, dtype: torch.dtype) -> native.Library | None:
    """The convolution of these sizes, compiled, if there is a compiler."""
    vectors = -(-given.output[1] // (VECTOR_BYTES // native.computed(dtype).itemsize))
    pieces = -(-vectors // MOST_TOGETHER)
    together = -(-vectors // pieces)
    divisors = (n for n in range(1, MOST_SUMS // together + 1) if given.outputs % n == 0)
    numbers = given._asdict() | {"together": together, "block": max(divisors), "parts": PARTS}
    constants = {name.upper(): value for name, value in numbers.items()}
    return native.begin_for(Path(__file__).with_name("few.cpp"), dtype, **constants)


def is_faster(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> bool:
    """Whether a convolution of these arguments is done faster so, and can be."""
    usual = is_plain_convolution(x, weight, stride, padding, *rest) and set(stride) == {1}
    if not usual or any(padding) or x.dtype not in STORED or not x.is_contiguous():
        return False
    given = sizes(x, weight)
    kernel = (given.rows, given.columns)
    return (
        given.inputs * given.outputs <= MOST_PAIRS
        and max(given.height, given.width) <= LARGEST_SIDE
        and max(kernel) <= LARGEST_KERNEL
        and given.rows * given.columns >= FEWEST_TAPS
        and given.output[0] > 0
        and given.output[1] * native.computed(x.dtype).itemsize >= VECTOR_BYTES
        and library(given, x.dtype) is not None
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """`aten.convolution` where `is_faster`; plain maps."""
    return CONVOLVE(x, weight, bias)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten.convolution_backward` where `is_faster`.

    The last argument is the mask of what is wanted: gradients of input, weight and bias.
    """
    *how, mask = rest
    grad_x = INPUT_GRADIENT(grad, weight, x.shape[2:]) if mask[0] else None
    grad_weight = None
    if mask[1] and (x.shape[1] == 1 or not has_avx512()):
        grad_weight = in_format_of(weight, WEIGHT_GRADIENT(grad, x, weight.shape[2:]))
    elif mask[1]:
        grad_weight = layout.weight_gradient(grad, x, weight, *how)
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1, without padding."""
    result = _empty(x, weight, bias)
    flat = None if bias is None else bias.contiguous()
    compiled = library(sizes(x, weight), x.dtype)
    tensors = x.contiguous(), weight.contiguous(), flat, result
    native.call(compiled, "convolve", *tensors, sizes=[len(x)])
    return result


def input_gradient(grad: Tensor, weight: Tensor, side: Sequence[int]) -> Tensor:
    """The gradient of the input, of these sides, of a convolution of stride 1, without padding."""
    result = _empty_input(grad, weight, side)
    compiled = library(sizes(result, weight), grad.dtype)
    tensors = grad.contiguous(), weight.contiguous(), result
    native.call(compiled, "input_gradient", *tensors, sizes=[len(grad)])
    return result


def _empty_input(grad: Tensor, weight: Tensor, side: Sequence[int]) -> Tensor:
    return grad.new_empty(len(grad), weight.shape[1], *side)


def weight_gradient(grad: Tensor, x: Tensor, kernel: Sequence[int]) -> Tensor:
    """The gradient of the weight of a convolution of stride 1, without padding."""
    shape = (PARTS, grad.shape[1], x.shape[1], *kernel)
    sums = x.new_empty(shape, dtype=native.computed(x.dtype))
    compiled = library(sizes(x, sums[0]), x.dtype)
    tensors = x.contiguous(), grad.contiguous(), sums
    native.call(compiled, "weight_gradient", *tensors, sizes=[len(x)])
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
FORWARD, BACKWARD = both_ways("few.", is_faster, forward, backward)
