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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.kernels import build
from funcnets.compiler.kernels.build import STORED
from funcnets.compiler.kernels.cpu import has_avx512
from funcnets.compiler.kernels.few_channels import (
    CONVOLVE,
    INPUT_GRADIENT,
    VECTOR_BYTES,
    WEIGHT_GRADIENT,
    library,
    sizes,
)
from funcnets.compiler.lowerings import layout
from funcnets.compiler.lowerings.convolution import both_ways, is_plain_convolution
from funcnets.compiler.lowerings.layout import in_format_of

MOST_PAIRS = 96  # of an input and an output channel
LARGEST_SIDE = 32  # of the input
FEWEST_TAPS, LARGEST_KERNEL = 25, 7

aten = torch.ops.aten


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
        and given.output[1] * build.computed(x.dtype).itemsize >= VECTOR_BYTES
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


FORWARD, BACKWARD = both_ways("few.", is_faster, forward, backward)
