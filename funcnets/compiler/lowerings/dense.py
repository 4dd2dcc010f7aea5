"""Convolutions of feature maps of a few pixels, as one matrix product each.

On such maps most taps of a kernel fall on the padding, and oneDNN's gradients of weights are slow.
Here the convolution is a matrix product over (pixel, channel), whose matrix leaves those taps out:
at 1×1 a 3×3 kernel is its centre alone, 9 times less work; at 2×2, 2.25 times less. At 2×2 the
matrix is 16/9 of the kernel's size, and building it pays for large batches alone (512→512, one
core, milliseconds against oneDNN's: 23 and 15 at batch 8, 36 and 65 at batch 64, 81 and 250 at
256).
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels.geometry import Geometry, area, geometry
from funcnets.compiler.lowerings.convolution import Gradients, both_directions, is_plain_convolution

MAX_PIXELS = 4  # of input and output
MIN_LARGE_BATCH = 64  # images, from which a matrix larger than the kernel pays


def gather_taps(weight: Tensor, shape: Geometry) -> Tensor:
    """Return the matrix (output pixels · O, input pixels · C) of a kernel (O, C, kh, kw)."""
    flat = rearrange(weight, "o c h w -> o (h w) c")
    outside = torch.zeros_like(flat[:, 0])
    columns = [outside if tap is None else flat[:, tap] for tap in shape.taps()]
    matrix = torch.stack(columns, 1)
    return rearrange(matrix, "o (q p) c -> (q o) (p c)", p=area(shape.input))


def scatter_taps(matrix: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
    """Return the gradient of a kernel from that of its matrix: the adjoint of `gather_taps`."""
    pixels, taps = area(shape.input), shape.taps()
    entries = rearrange(matrix, "(q o) (p c) -> (q p) o c", p=pixels, o=weight.shape[0])
    sums = [torch.zeros_like(entries[0])] * area(shape.kernel)
    for entry, tap in enumerate(taps):
        if tap is not None:
            sums[tap] = sums[tap] + entries[entry]
    return rearrange(torch.stack(sums, -1), "o c (h w) -> o c h w", h=shape.kernel[0])


# One operation each in the graph: their parts take longer to trace than to run.
GATHER_TAPS = define(
    "gather_taps(Tensor weight, int[] geometry) -> Tensor",
    lambda weight, sides: gather_taps(weight, _unpacked(sides)),
    lambda weight, sides: _empty_matrix(weight, _unpacked(sides)),
)
SCATTER_TAPS = define(
    "scatter_taps(Tensor matrix, Tensor weight, int[] geometry) -> Tensor",
    lambda matrix, weight, sides: scatter_taps(matrix, weight, _unpacked(sides)).contiguous(),
    lambda matrix, weight, sides: matrix.new_empty(weight.shape),
)


def _packed(shape: Geometry) -> list[int]:
    return [number for sides in shape for number in sides]


def _unpacked(sides: Sequence[int]) -> Geometry:
    return Geometry(*zip(sides[::2], sides[1::2], strict=True))


def _empty_matrix(weight: Tensor, shape: Geometry) -> Tensor:
    outputs, inputs = weight.shape[:2]
    return weight.new_empty(outputs * area(shape.output), inputs * area(shape.input))


def is_faster(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> bool:
    """True if a kernel of several taps has maps of so few pixels that one product is faster."""
    if not is_plain_convolution(x, weight, stride, padding, *rest):
        return False
    shape = geometry(x, weight, stride, padding)
    return (
        area(shape.kernel) > 1
        and area(shape.input) <= MAX_PIXELS
        and min(shape.output) > 0
        and area(shape.output) <= MAX_PIXELS
        and (x.shape[0] >= MIN_LARGE_BATCH or len(shape.taps()) <= area(shape.kernel))
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    *rest: Any,
) -> Tensor:
    """Return `aten.convolution`, as one matrix product over (pixel, channel)."""
    shape = geometry(x, weight, stride, padding)
    matrix: Tensor = GATHER_TAPS(weight, _packed(shape))
    result = rearrange(x, "n c h w -> n (h w c)") @ matrix.T
    result = rearrange(result, "n (h w o) -> n o h w", h=shape.output[0], w=shape.output[1])
    return result if bias is None else result + rearrange(bias, "o -> o 1 1")


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    *rest: Any,
) -> Gradients:
    """Return `aten.convolution_backward`, as matrix products over (pixel, channel).

    The last argument is the mask of gradients that are wanted: of input, weight and bias.
    """
    *_, mask = rest
    shape = geometry(x, weight, stride, padding)
    flat = rearrange(grad, "n o h w -> n (h w o)")
    grad_x = grad_weight = None
    if mask[0]:
        product = flat @ GATHER_TAPS(weight, _packed(shape))
        _, _, height, width = x.shape
        grad_x = rearrange(product, "n (h w c) -> n c h w", h=height, w=width)
    if mask[1]:
        matrix = flat.T @ rearrange(x, "n c h w -> n (h w c)")
        grad_weight = SCATTER_TAPS(matrix, weight, _packed(shape))
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


FORWARD, BACKWARD = both_directions("dense", is_faster, forward, backward)
