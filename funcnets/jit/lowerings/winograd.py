"""Winograd's minimal filtering: convolutions of stride 1 by fewer multiplications.

A tile of m×m outputs of a k×k kernel sees (m+k-1)² inputs.  Both it and the kernel are turned into
that many numbers by small fixed matrices; these are multiplied one by one, which over channels
makes (m+k-1)² matrix products, and a third matrix turns the result back:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A

With m = 2 a 3×3 kernel takes 16 multiplications in place of 36, a 5×5 kernel 36 in place of 100.
The transposed formulas give the gradient of the weight; that of the input is such a convolution
again.  (Lavin and Gray, 2015, "Fast algorithms for convolutional neural networks"; the matrices are
Cook and Toom's, which evaluate polynomials at the points 0, ±1, ±2 and infinity.)

Rounding errors of 3×3 kernels are those of a direct convolution; of 5×5 kernels three times as
large (6e-6 of the largest output against 2e-6, 96 channels in float32).
"""

import functools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcnets.jit.lowerings.convolution import is_plain_convolution
from funcnets.jit.lowerings.layout import channels_last, in_format_of
from funcnets.jit.lowerings.recorder import Lowering
from funcnets.jit.operators import define

OUTPUTS = 2  # m: a tile gives m×m outputs
POINTS = {3: (0, 1, -1), 5: (0, 1, -1, 2, -2)}  # by the kernel's side; infinity is one more
FEWEST_CHANNELS = 64  # of input and of output
FEWEST_PRODUCTS = 64 * 192  # of the two: below, making the tiles costs what they save
SMALLEST_SIDE = 8  # of the output
BLOCK_BYTES = 8 << 20  # of tiles at a time, which a processor's cache should hold

Matrix = tuple[tuple[float, ...], ...]
aten = torch.ops.aten


class Transforms(NamedTuple):
    """The three matrices, by rows: of inputs Bᵀ, of kernels G, of outputs Aᵀ."""

    inputs: Matrix
    kernels: Matrix
    outputs: Matrix


@functools.cache
def transforms(side: int) -> Transforms:
    """Cook and Toom's matrices for `OUTPUTS` outputs of a kernel with so many taps."""
    points = [Fraction(point) for point in POINTS[side]]
    infinity = len(points)

    def powers(count: int, scale: Sequence[Fraction]) -> list[list[Fraction]]:
        rows = [[p**i / s for i in range(count)] for p, s in zip(points, scale, strict=True)]
        return [*rows, [Fraction(i == count - 1) for i in range(count)]]

    def product(left_out: int) -> list[Fraction]:
        """Coefficients, from x⁰ up, of the product of (x - p) over the other points."""
        result = [Fraction(1)]
        for p in points[:left_out] + points[left_out + 1 :]:
            shifted, scaled = [Fraction(0), *result], [*(p * c for c in result), Fraction(0)]
            result = [a - b for a, b in zip(shifted, scaled, strict=True)]
        return result + [Fraction(0)] * (infinity + 1 - len(result))

    def value(coefficients: list[Fraction], at: Fraction) -> Fraction:
        return sum((c * at**i for i, c in enumerate(coefficients)), Fraction(0))

    scale = [value(product(k), point) for k, point in enumerate(points)]
    evaluated = powers(OUTPUTS, [Fraction(1)] * infinity)
    return Transforms(
        _floats([product(k) for k in range(infinity + 1)]),
        _floats(powers(side, scale)),
        _floats(list(zip(*evaluated, strict=True))),
    )


def _floats(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def combine(matrix: Matrix, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Write `matrix` times the list of sources into the targets."""
    for row, target in zip(matrix, targets, strict=True):
        # A factor of 1 first, as it makes one pass of two.
        terms = sorted(
            ((factor, source) for factor, source in zip(row, sources, strict=True) if factor),
            key=lambda term: term[0] != 1,
        )
        (factor, source), *rest = terms
        if factor == 1 and rest:
            (other, addend), *rest = rest
            torch.add(source, addend, alpha=other, out=target)
        else:
            torch.mul(source, factor, out=target)
        for factor, source in rest:
            target.add_(source, alpha=factor)


def both_sides(matrix: Matrix, tiles: Tensor) -> Tensor:
    """`matrix` times each tile times its transpose: (a, b, ...) -> (rows, rows, ...)."""
    rows, rest = len(matrix), tiles.shape[1:]
    half, result = tiles.new_empty(rows, *rest), tiles.new_empty(rows, rows, *rest[1:])
    combine(matrix, tiles.unbind(0), half.unbind(0))
    combine(matrix, half.unbind(1), result.unbind(1))
    return result


class Block(NamedTuple):
    """Some rows of tiles of some images."""

    images: slice
    rows: slice

    @property
    def height(self) -> int:
        """How many rows of tiles."""
        return self.rows.stop - self.rows.start


class Tiling(NamedTuple):
    """How the outputs of a convolution are cut into tiles."""

    images: int
    height: int  # outputs
    width: int
    side: int  # of the kernel
    padding: tuple[int, int]

    @property
    def tile(self) -> int:
        """The side of what a tile of outputs sees."""
        return OUTPUTS + self.side - 1

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // OUTPUTS)

    def blocks(self, channels: int, bytes_each: int) -> Iterator[Block]:
        """Blocks of `BLOCK_BYTES`, or one row of tiles, with so many numbers for a tile's pixel."""
        rows = -(-self.height // OUTPUTS)
        of_row = self.tile**2 * self.columns * channels * bytes_each
        images = max(1, BLOCK_BYTES // (of_row * rows))
        step = rows if images > 1 else min(rows, max(1, BLOCK_BYTES // of_row))
        for i in range(0, self.images, images):
            for j in range(0, rows, step):
                yield Block(slice(i, min(i + images, self.images)), slice(j, min(j + step, rows)))

    def of_inputs(self, x: Tensor, block: Block) -> Tensor:
        """Bᵀ x B of a block of x (N, H, W, C): (tile², tiles, C)."""
        top, left = (block.rows.start * OUTPUTS - self.padding[0], -self.padding[1])
        rows = block.height
        height, width = (OUTPUTS * n + self.side - 1 for n in (rows, self.columns))
        padded = _window(x[block.images], top, left, height, width)
        matrix, tile = transforms(self.side).inputs, self.tile
        # Not by `both_sides`: tiles overlap, and here what two of them share is computed once.
        half = x.new_empty(tile, len(padded), rows, width, x.shape[3])
        last = OUTPUTS * (rows - 1) + 1
        combine(matrix, [padded[:, i : i + last : OUTPUTS] for i in range(tile)], half.unbind(0))
        result = x.new_empty(tile, tile, len(padded), rows, self.columns, x.shape[3])
        last = OUTPUTS * (self.columns - 1) + 1
        seen = [half[:, :, :, i : i + last : OUTPUTS] for i in range(tile)]
        combine(matrix, seen, result.unbind(1))
        return result.view(tile**2, -1, x.shape[3])

    def of_outputs(self, grad: Tensor, block: Block) -> Tensor:
        """A g Aᵀ of a block of gradients (N, H', W', O): (tile², tiles, O)."""
        height, width = OUTPUTS * block.height, OUTPUTS * self.columns
        padded = _window(grad[block.images], block.rows.start * OUTPUTS, 0, height, width)
        tiles = rearrange(padded, "n (h i) (w j) o -> i j n h w o", i=OUTPUTS, j=OUTPUTS)
        result = both_sides(_transposed(transforms(self.side).outputs), tiles)
        return result.view(self.tile**2, -1, grad.shape[3])


def _window(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """That window of images (N, H, W, C), with zeros outside of them."""
    result = x.new_zeros(len(x), height, width, x.shape[3])
    first, last = max(top, 0), min(top + height, x.shape[1])
    start, end = max(left, 0), min(left + width, x.shape[2])
    result[:, first - top : last - top, start - left : end - left] = x[:, first:last, start:end]
    return result


def _tiling(x: Tensor, side: int, padding: Sequence[int]) -> Tiling:
    height, width = (n + 2 * p - side + 1 for n, p in zip(x.shape[2:], padding, strict=True))
    return Tiling(len(x), height, width, side, (padding[0], padding[1]))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """A convolution of stride 1: (N, C, H, W) and (O, C, k, k) -> (N, O, H', W'), channels_last."""
    outputs, channels, side, _ = weight.shape
    tiling, matrices = _tiling(x, side, padding), transforms(side)
    taps = rearrange(weight, "o c i j -> i j c o").contiguous()
    kernels = both_sides(matrices.kernels, taps).view(-1, channels, outputs)
    images, result = rearrange(x, "n c h w -> n h w c"), _empty_output(x, weight, padding)
    y = rearrange(result, "n o h w -> n h w o")
    for block in tiling.blocks(channels + outputs, x.element_size()):
        products = torch.bmm(tiling.of_inputs(images, block), kernels)
        shape = (tiling.tile, tiling.tile, -1, block.height, tiling.columns, outputs)
        tiles = both_sides(matrices.outputs, products.view(shape))
        whole = rearrange(tiles, "i j n h w o -> n (h i) (w j) o")
        target = y[block.images, block.rows.start * OUTPUTS : block.rows.stop * OUTPUTS]
        target.copy_(whole[:, : target.shape[1], : tiling.width])
        if bias is not None:
            target.add_(bias)
    return result


def _empty_output(x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    tiling = _tiling(x, weight.shape[2], padding)
    y = x.new_empty(tiling.images, tiling.height, tiling.width, len(weight))
    return rearrange(y, "n h w o -> n o h w")


def weight_gradient(grad: Tensor, x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    """The gradient of such a convolution's weight: (N, O, H', W') and x -> (O, C, k, k)."""
    tiling = _tiling(x, side, padding)
    images, grads = (rearrange(value, "n c h w -> n h w c") for value in (x, grad))
    channels, outputs = x.shape[1], grad.shape[1]
    products = x.new_zeros(tiling.tile**2, channels, outputs)
    for block in tiling.blocks(channels + outputs, x.element_size()):
        of_inputs, of_outputs = tiling.of_inputs(images, block), tiling.of_outputs(grads, block)
        products.baddbmm_(of_inputs.mT, of_outputs)
    tiles = products.view(tiling.tile, tiling.tile, channels, outputs)
    result = both_sides(_transposed(transforms(side).kernels), tiles)
    return rearrange(result, "i j c o -> o c i j").contiguous()


CONVOLVE = define(
    "winograd(Tensor x, Tensor weight, Tensor? bias, int[] padding) -> Tensor",
    convolve,
    lambda x, weight, bias, padding: _empty_output(x, weight, padding),
)
WEIGHT_GRADIENT = define(
    "winograd_weight_gradient(Tensor grad, Tensor x, int side, int[] padding) -> Tensor",
    weight_gradient,
    lambda grad, x, side, padding: x.new_empty(grad.shape[1], x.shape[1], side, side),
)


def is_suited(x: Tensor, weight: Tensor, *how: Any) -> bool:
    """Whether tiles save more than they cost: by channels, kernel and sides."""
    stride, padding, *_ = how
    if not is_plain_convolution(x, weight, *how) or set(stride) != {1}:
        return False
    side, channels = weight.shape[2], weight.shape[:2]
    if weight.shape[3] != side or side not in POINTS or max(padding) >= side:
        return False
    tiling = _tiling(x, side, padding)
    return (
        x.dtype in (torch.float32, torch.float64)
        and min(channels) >= FEWEST_CHANNELS
        and channels[0] * channels[1] >= FEWEST_PRODUCTS
        and min(tiling.height, tiling.width) >= SMALLEST_SIDE
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """`aten.convolution` where `is_suited`."""
    return CONVOLVE(channels_last(x), weight, bias, how[1])


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten.convolution_backward` where `is_suited`; the last argument is the mask of results."""
    *how, mask = rest
    grad, x, side, padding = channels_last(grad), channels_last(x), weight.shape[2], how[1]
    grad_x = grad_weight = None
    if mask[0]:
        turned = rearrange(weight, "o c i j -> c o i j").flip(2, 3)
        grad_x = CONVOLVE(grad, turned, None, [side - 1 - p for p in padding])
    if mask[1]:
        grad_weight = in_format_of(weight, WEIGHT_GRADIENT(grad, x, side, padding))
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


FORWARD = Lowering(
    "winograd.forward",
    aten.convolution.default,
    lambda x, weight, bias, *how: is_suited(x, weight, *how),
    forward,
)
BACKWARD = Lowering(
    "winograd.backward",
    aten.convolution_backward.default,
    lambda grad, x, weight, bias_sizes, *how: is_suited(x, weight, *how[:-1]),
    backward,
)
