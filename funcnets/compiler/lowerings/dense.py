"""Convolutions on maps of a few pixels, as matrix products."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels.geometry import Geometry, _pixels, geometry
from funcnets.compiler.lowerings.convolution import both_ways, is_plain_convolution

LARGEST_TINY_MAP = 4  # pixels
LARGE_BATCH = 64  # images, from which a matrix larger than the kernel pays


def gather_taps(weight: Tensor, shape: Geometry) -> Tensor:
    """The dense matrix (output pixels·out, input pixels·in) that the kernel stands for."""
    flat = rearrange(weight, "o c h w -> o (h w) c")
    outside = torch.zeros_like(flat[:, 0])
    columns = [outside if tap is None else flat[:, tap] for tap in shape.taps()]
    pixels = _pixels(shape.input)
    return rearrange(torch.stack(columns, 1), "o (q p) c -> (q o) (p c)", p=pixels)


def scatter_taps(matrix: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
    """The adjoint of `gather_taps`: the gradient of the kernel from that of the matrix."""
    pixels, taps = _pixels(shape.input), shape.taps()
    entries = rearrange(matrix, "(q o) (p c) -> (q p) o c", p=pixels, o=weight.shape[0])
    sums = [torch.zeros_like(entries[0])] * _pixels(shape.kernel)
    for entry, tap in enumerate(taps):
        if tap is not None:
            sums[tap] = sums[tap] + entries[entry]
    return rearrange(torch.stack(sums, -1), "o c (h w) -> o c h w", h=shape.kernel[0])


# One operation each in the graph, as their parts take longer to trace than to run.
GATHER_TAPS = define(
    "gather_taps(Tensor weight, int[] geometry) -> Tensor",
    lambda weight, numbers: gather_taps(weight, _geometry(numbers)),
    lambda weight, numbers: _empty_matrix(weight, _geometry(numbers)),
)
SCATTER_TAPS = define(
    "scatter_taps(Tensor matrix, Tensor weight, int[] geometry) -> Tensor",
    lambda matrix, weight, numbers: scatter_taps(matrix, weight, _geometry(numbers)).contiguous(),
    lambda matrix, weight, numbers: matrix.new_empty(weight.shape),
)


def _numbers(shape: Geometry) -> list[int]:
    return [number for sides in shape for number in sides]


def _geometry(numbers: Sequence[int]) -> Geometry:
    return Geometry(*zip(numbers[::2], numbers[1::2], strict=True))


def _empty_matrix(weight: Tensor, shape: Geometry) -> Tensor:
    outputs, inputs = weight.shape[:2]
    return weight.new_empty(outputs * _pixels(shape.output), inputs * _pixels(shape.input))


def is_tiny(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> bool:
    """Whether a convolution of these arguments is done faster as one matrix product."""
    if not is_plain_convolution(x, weight, stride, padding, *rest):
        return False
    shape = geometry(x, weight, stride, padding)
    return (
        _pixels(shape.kernel) > 1
        and _pixels(shape.input) <= LARGEST_TINY_MAP
        and min(shape.output) > 0
        and _pixels(shape.output) <= LARGEST_TINY_MAP
        and (x.shape[0] >= LARGE_BATCH or len(shape.taps()) <= _pixels(shape.kernel))
    )


def tiny_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    *rest: Any,
) -> Tensor:
    """`aten.convolution` where `is_tiny`, as one matrix product over (pixel, channel)."""
    shape = geometry(x, weight, stride, padding)
    result = rearrange(x, "n c h w -> n (h w c)") @ GATHER_TAPS(weight, _numbers(shape)).T
    result = rearrange(result, "n (h w o) -> n o h w", h=shape.output[0], w=shape.output[1])
    return result if bias is None else result + rearrange(bias, "o -> o 1 1")


def tiny_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    *rest: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten.convolution_backward` where `is_tiny`, as matrix products over (channel, pixel).

    The last argument is the mask of what is wanted: gradients of input, weight and bias.
    """
    *_, mask = rest
    shape = geometry(x, weight, stride, padding)
    flat = rearrange(grad, "n o h w -> n (h w o)")
    grad_x = grad_weight = None
    if mask[0]:
        product = flat @ GATHER_TAPS(weight, _numbers(shape))
        _, _, height, width = x.shape
        grad_x = rearrange(product, "n (h w c) -> n c h w", h=height, w=width)
    if mask[1]:
        matrix = flat.T @ rearrange(x, "n c h w -> n (h w c)")
        grad_weight = SCATTER_TAPS(matrix, weight, _numbers(shape))
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


TINY_FORWARD, TINY_BACKWARD = both_ways("convolution.tiny_", is_tiny, tiny_forward, tiny_backward)
