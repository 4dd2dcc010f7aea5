"""Convolutions on maps of a few pixels, as matrix products.

There most of a kernel's taps fall on the padding, and oneDNN's weight gradients are slow.  The
convolution is one dense matrix product over (channel, pixel) instead, which leaves those taps out:
at 1×1 a 3×3 kernel is its centre alone, 9 times less work; at 2×2, 2.25 times less.  There the
matrix is 16/9 of the kernel's size, and making it pays for large batches alone (512→512, one core,
milliseconds against oneDNN's: 23 and 15 at batch 8, 36 and 65 at batch 64, 81 and 250 at 256).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcnets.jit.lowerings.recorder import Lowering
from funcnets.jit.operators import define

LARGEST_TINY_MAP = 4  # pixels
LARGE_BATCH = 64  # images, from which a matrix larger than the kernel pays

aten = torch.ops.aten


class Geometry(NamedTuple):
    """Sides of the input, the kernel and the output, and how the kernel moves."""

    input: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def tap(self, output: int, pixel: int) -> int | None:
        """The kernel's tap through which an output pixel sees an input pixel, if there is one."""
        rows = [divmod(output, self.output[1]), divmod(pixel, self.input[1])]
        y, x = (
            rows[1][axis] + self.padding[axis] - rows[0][axis] * self.stride[axis]
            for axis in (0, 1)
        )
        inside = 0 <= y < self.kernel[0] and 0 <= x < self.kernel[1]
        return y * self.kernel[1] + x if inside else None

    def taps(self) -> list[int | None]:
        """The tap of every (output pixel, input pixel), in order."""
        outputs, pixels = _pixels(self.output), _pixels(self.input)
        return [self.tap(o, p) for o in range(outputs) for p in range(pixels)]


def _pixels(side: Sequence[int]) -> int:
    return side[0] * side[1]


def geometry(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Geometry:
    """The geometry of a convolution without dilation or groups."""
    sides, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    output = tuple(
        (side + 2 * p - k) // s + 1
        for side, k, s, p in zip(sides, kernel, stride, padding, strict=True)
    )
    return Geometry(sides, kernel, output, tuple(stride), tuple(padding))


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


def both_ways(
    name: str,
    applies: Callable[..., bool],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
) -> tuple[Lowering, Lowering]:
    """Lowerings of a convolution and of its derivative, `name` with `forward` and `backward`.

    `applies` is the rule of both, of the input, the weight, and how they are convolved.  Where they
    don't fit together it isn't asked, and ATen says what is wrong.
    """
    return (
        Lowering(
            f"{name}forward",
            aten.convolution.default,
            lambda x, weight, bias, *how: fits(x, weight, bias, *how) and applies(x, weight, *how),
            forward,
        ),
        Lowering(
            f"{name}backward",
            aten.convolution_backward.default,
            lambda grad, x, weight, bias_sizes, *how: (
                fits(x, weight, None, *how[:-1]) and applies(x, weight, *how[:-1])
            ),
            backward,
        ),
    )


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> bool:
    """Whether they are the operands of a convolution of images that can be computed."""
    stride, padding, dilation, transposed, _, groups = how
    lengths = {len(each) for each in (stride, padding, dilation)}
    if transposed or not x.ndim == weight.ndim == 4 or lengths != {2}:
        return False
    sides = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    return (
        x.shape[1] == weight.shape[1] * groups
        and x.dtype is weight.dtype
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype is x.dtype))
        and min(weight.shape) > 0
        and all(p >= 0 and n + 2 * p > d * (k - 1) for n, k, p, d in sides)
    )


def is_plain_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> bool:
    """Whether it is a convolution of images, on the CPU, without groups or dilation."""
    usual = groups == 1 and not transposed and set(dilation) == {1}
    return usual and x.ndim == 4 and x.device.type == "cpu" and x.numel() > 0


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
