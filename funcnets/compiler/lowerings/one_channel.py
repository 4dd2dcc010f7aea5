"""Convolutions of one channel to many, as first layers of grey images are, in C++.

oneDNN's vectors hold input channels, or it leaves a map in blocks that must be reordered; this
kernel's vectors hold output channels, and its results are channels_last. Milliseconds on two cores
with AVX2, float32, oneDNN's in channels_last and these: 11×11 kernels, stride 4, to 96 channels of
54×54, batch 128, 101 and 54, gradient of the weight 84 and 83; 7×7, stride 2, to 64 of 48×48, batch
256, 86 and 35, 59 and 45; of 14×14 8.4 and 5.5, 4.8 and 4.1; 3×3 to 64 of 224×224, batch 128, 164
and 116, 352 and 160. AVX-512, for which oneDNN has kernels of its own, was not measured, and is
left to oneDNN.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.kernels import build
from funcnets.compiler.kernels import one_channel as kernel
from funcnets.compiler.kernels.cpu import has_avx512
from funcnets.compiler.kernels.geometry import geometry
from funcnets.compiler.lowerings import layout
from funcnets.compiler.lowerings.convolution import Gradients, both_directions, is_plain_convolution
from funcnets.compiler.lowerings.layout import in_format_of

aten = torch.ops.aten


def is_faster(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> bool:
    """True if the input has one channel, and the CPU no AVX-512."""
    is_plain = is_plain_convolution(x, weight, stride, padding, *rest)
    if not is_plain or x.dtype not in build.FLOAT_TYPES or x.shape[1] > 1 or has_avx512():
        return False
    sizes = geometry(x, weight, stride, padding)
    return (
        len(weight) * x.itemsize % kernel.CHANNEL_BLOCK_BYTES == 0
        and sizes.output[0] > 0
        and min(sizes.output[1], math.prod(sizes.kernel)) >= kernel.ACCUMULATORS
        and build.is_available()
    )


def prepare(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> None:
    """Begin to compile the kernel for these sides, stride and padding."""
    kernel.KERNEL.begin(x.dtype, *weight.shape[2:], *stride, *padding)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """Return `aten.convolution`, in channels_last."""
    stride, padding, *_ = how
    result: Tensor = kernel.CONVOLUTION(x, weight, bias, stride, padding)
    return result


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> Gradients:
    """Return `aten.convolution_backward`.

    The last argument is the mask of gradients that are wanted: of input, weight and bias.
    """
    *how, mask = rest
    stride, padding, *_ = how
    grad_x = layout.input_gradient(grad, x, weight, *how) if mask[0] else None
    grad_weight = None
    if mask[1]:
        grad_weight = kernel.WEIGHT_GRADIENT(grad, x, weight.shape[2:], stride, padding)
        grad_weight = in_format_of(weight, grad_weight)
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


FORWARD, BACKWARD = both_directions("one_channel", is_faster, forward, backward, prepare)
