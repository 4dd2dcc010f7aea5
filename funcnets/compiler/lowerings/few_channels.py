"""Convolutions of few channels, as LeNet's are, in C++ that is compiled for their sizes.

oneDNN's vectors hold channels, of which there are too few; this kernel's hold pixels of a row.
Milliseconds on two cores with AVX2, float32, batch 256, by `funcnets bench lenet_bn --lowerings`,
ATen's and these: 1→6 channels of 28×28, 5×5 kernels: 1.80 and 0.70, gradient of the weight 4.26 and
0.84; 6→16 of 12×12: 1.03 and 0.84. With padding, or with 3×3 kernels, such loops were faster for
some numbers of channels and slower for others, so those convolutions stay. With AVX-512: 1→6
channels 1.41 and 0.49, gradient of the weight 0.97 and 0.57; 6→16: gradient of the input 1.30 and
0.61; in bfloat16 0.76 and 0.49, 1.00 and 0.57; 0.59 and 0.52. There oneDNN's gradient of the weight
is faster from two channels on, 0.53 against 0.76, in bfloat16 0.41.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.kernels import build
from funcnets.compiler.kernels import few_channels as kernel
from funcnets.compiler.kernels.cpu import has_avx512
from funcnets.compiler.lowerings import layout
from funcnets.compiler.lowerings.convolution import Gradients, both_directions, is_plain_convolution
from funcnets.compiler.lowerings.layout import in_format_of

MAX_CHANNEL_PAIRS = 96  # input channels × output channels
MAX_SIDE = 32  # of the input
MIN_TAPS, MAX_KERNEL_SIDE = 25, 7

aten = torch.ops.aten


def is_faster(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> bool:
    """True if a small NCHW map has few channels, and a kernel of stride 1 many taps."""
    is_plain = is_plain_convolution(x, weight, stride, padding, *rest) and set(stride) == {1}
    if not is_plain or any(padding) or x.dtype not in build.MEMORY_TYPES or not x.is_contiguous():
        return False
    shape = kernel.shape_of(x, weight)
    return (
        shape.inputs * shape.outputs <= MAX_CHANNEL_PAIRS
        and max(shape.height, shape.width) <= MAX_SIDE
        and max(shape.rows, shape.columns) <= MAX_KERNEL_SIDE
        and shape.rows * shape.columns >= MIN_TAPS
        and shape.output[0] > 0
        and shape.output[1] * build.register_dtype(x.dtype).itemsize >= kernel.VECTOR_BYTES
        and build.is_available()
    )


def prepare(x: Tensor, weight: Tensor, *how: Any) -> None:
    """Begin to compile the kernel for these sizes."""
    kernel.KERNEL.begin(x.dtype, *kernel.shape_of(x, weight))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """Return `aten.convolution`, as an NCHW map."""
    result: Tensor = kernel.CONVOLUTION(x, weight, bias)
    return result


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> Gradients:
    """Return `aten.convolution_backward`.

    The last argument is the mask of gradients that are wanted: of input, weight and bias.
    """
    *how, mask = rest
    grad_x = kernel.INPUT_GRADIENT(grad, weight, x.shape[2:]) if mask[0] else None
    grad_weight = None
    if mask[1] and (x.shape[1] == 1 or not has_avx512()):
        grad_weight = in_format_of(weight, kernel.WEIGHT_GRADIENT(grad, x, weight.shape[2:]))
    elif mask[1]:
        grad_weight = layout.weight_gradient(grad, x, weight, *how)
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


FORWARD, BACKWARD = both_directions("few_channels", is_faster, forward, backward, prepare)
