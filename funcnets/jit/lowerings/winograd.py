"""Winograd's minimal filtering: convolutions of stride 1 by fewer multiplications.

A tile of m×m outputs of a k×k kernel sees (m+k-1)² inputs.  Both it and the kernel are turned into
that many numbers by small fixed matrices; these are multiplied one by one, which over channels
makes (m+k-1)² matrix products, and a third matrix turns the result back:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A

With tiles of 6×6 inputs a 3×3 kernel takes 36 multiplications for 4×4 outputs in place of 144, a
5×5 kernel 36 for 2×2 in place of 100.  The transposed formulas give the gradient of the weight;
that of the input is such a convolution again.  (Lavin and Gray, 2015, "Fast algorithms for
convolutional neural networks"; the matrices are Cook and Toom's, which evaluate polynomials at the
points 0, ±1, ±2 and infinity.)

The small matrices are applied by C++ that is written here, and compiled while the graph is traced;
without a compiler convolutions stay ATen's.  Rounding errors are three to five times those of a
direct convolution (4e-6 to 5e-6 of the largest output against 1e-6, 96 channels in float32).
"""

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcnets.jit import native
from funcnets.jit.lowerings import layout
from funcnets.jit.lowerings.convolution import is_plain_convolution
from funcnets.jit.lowerings.layout import channels_last, in_format_of
from funcnets.jit.lowerings.recorder import Lowering
from funcnets.jit.native import SCALARS
from funcnets.jit.operators import define

OUTPUTS = {3: 4, 5: 2}  # m by k: a tile gives m×m outputs
POINTS = (0, 1, -1, 2, -2)  # and infinity: m+k-1 in all
LEAST_SAVED = 75  # multiplications for each number that is transformed, by `saved`
LEAST_SAVED_OF_WEIGHT = 48  # for the weight's gradient, in which oneDNN is slower
MOST_WASTE = 1.35  # outputs computed, of tiles that the map cuts short, to outputs wanted
FEWEST_TILES = 64  # as the kernels are transformed anew for each batch
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
    """Cook and Toom's matrices for a kernel with so many taps a side."""
    points = [Fraction(point) for point in POINTS]
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
    evaluated = powers(OUTPUTS[side], [Fraction(1)] * infinity)
    return Transforms(
        _floats([product(k) for k in range(infinity + 1)]),
        _floats(powers(side, scale)),
        _floats(list(zip(*evaluated, strict=True))),
    )


def _floats(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


@functools.cache
def library(side: int, dtype: torch.dtype) -> native.Library | None:
    """The transforms of kernels with so many taps a side, compiled, if there is a compiler."""
    inputs, kernels, outputs = transforms(side)
    matrices = {
        "of_inputs": inputs,
        "of_kernels": kernels,
        "of_turned_kernels": tuple(row[::-1] for row in kernels),
        "to_outputs": outputs,
        "of_gradients": _transposed(outputs),
        "to_kernels": _transposed(kernels),
    }
    template = Path(__file__).with_name("tiles.cpp").read_text()
    structs = [_struct(name, matrix) for name, matrix in matrices.items()]
    exports = [f"EXPORT({name})" for name in matrices]
    return native.begin(
        "\n".join([f"typedef {SCALARS[dtype]} Scalar;", template, *structs, *exports])
    )


def _struct(name: str, matrix: Matrix) -> str:
    """C++ that multiplies by `matrix`, of which zeros and ones take no time."""

    def row(factors: tuple[float, ...]) -> str:
        terms = [f"Scalar({f}) * x[{i} * of_x]" for i, f in enumerate(factors) if f]
        return " + ".join(term.removeprefix("Scalar(1.0) * ") for term in terms)

    lines = " ".join(f"y[{i} * of_y] = {row(factors)};" for i, factors in enumerate(matrix))
    return (
        f"struct {name}_matrix {{ static constexpr int OUT = {len(matrix)}, IN = {len(matrix[0])};"
        f"static void times(const Vector* x, int of_x, Vector* y, int of_y) {{ {lines} }} }};"
    )


STRIDES = ("image", "below", "beside", "row", "column", "channel")
PLACE = ("top", "left", "step", "height", "width")


class View(ctypes.Structure):
    """Where the tiles of a tensor lie, as in tiles.cpp."""

    _fields_ = tuple((name, ctypes.c_long) for name in (*STRIDES, *PLACE))


class Tiles(NamedTuple):
    """A tensor as tiles: how many (images, rows, columns), where, and how many channels."""

    tensor: Tensor
    counts: tuple[int, int, int]
    view: View

    @property
    def sizes(self) -> tuple[int, ...]:
        """The counts, and the number of channels."""
        return (*self.counts, self.tensor.shape[-1])


def separate(tensor: Tensor) -> Tiles:
    """Tiles that don't overlap: (height, width, images, rows, columns, channels)."""
    row, column, image, below, beside, channel = tensor.stride()
    inside = (0, 0, 0, *tensor.shape[:2])
    _, _, images, rows, columns, _ = tensor.shape
    view = View(image, below, beside, row, column, channel, *inside)
    return Tiles(tensor, (images, rows, columns), view)


def transform(
    side: int, name: str, source: Tiles, target: Tiles, bias: Tensor | None = None
) -> None:
    """Write P x Pᵀ, and a number a channel, of each tile of `source` to the one of `target`."""
    compiled = library(side, source.tensor.dtype)
    assert compiled is not None, "the rule asks for a compiler"
    pointers = [
        ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
        for tensor in (source.tensor, target.tensor, bias)
    ]
    sizes = (ctypes.c_long * 4)(*source.sizes)
    compiled[name](*pointers, sizes, ctypes.byref(source.view), ctypes.byref(target.view))


class Block(NamedTuple):
    """Some rows of tiles of some images."""

    images: slice
    rows: slice


class Tiling(NamedTuple):
    """How the outputs of a convolution are cut into tiles."""

    images: int
    height: int  # outputs
    width: int
    side: int  # of the kernel
    padding: tuple[int, int]

    @property
    def step(self) -> int:
        """The side of a tile of outputs."""
        return OUTPUTS[self.side]

    @property
    def tile(self) -> int:
        """The side of what it sees."""
        return self.step + self.side - 1

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles of an image: from top to bottom, and beside each other."""
        return -(-self.height // self.step), -(-self.width // self.step)

    def blocks(self, channels: int, bytes_each: int) -> Iterator[Block]:
        """Blocks of `BLOCK_BYTES`, or one row of tiles, with so many numbers for a tile's pixel."""
        rows, columns = self.counts
        of_row = self.tile**2 * columns * channels * bytes_each
        images = max(1, BLOCK_BYTES // (of_row * rows))
        step = rows if images > 1 else min(rows, max(1, BLOCK_BYTES // of_row))
        for i in range(0, self.images, images):
            for j in range(0, rows, step):
                yield Block(slice(i, min(i + images, self.images)), slice(j, min(j + step, rows)))

    def of_map(self, maps: Tensor, block: Block, padding: Sequence[int] = (0, 0)) -> Tiles:
        """The block's tiles, `step` apart, of a map (N, H, W, C) with so much around it."""
        image, row, column, channel = maps.stride()
        images = maps[block.images]
        strides = (image, self.step * row, self.step * column, row, column, channel)
        place = (block.rows.start * self.step - padding[0], -padding[1], self.step)
        counts = (len(images), block.rows.stop - block.rows.start, self.counts[1])
        return Tiles(images, counts, View(*strides, *place, *maps.shape[1:3]))

    def transformed(self, name: str, tiles: Tiles) -> Tensor:
        """P x Pᵀ of each of the tiles: (tile², tiles, C)."""
        result = tiles.tensor.new_empty(self.tile, self.tile, *tiles.sizes)
        transform(self.side, name, tiles, separate(result))
        return result.view(self.tile**2, -1, tiles.tensor.shape[-1])


def _tiling(x: Tensor, side: int, padding: Sequence[int]) -> Tiling:
    height, width = (n + 2 * p - side + 1 for n, p in zip(x.shape[2:], padding, strict=True))
    return Tiling(len(x), height, width, side, (padding[0], padding[1]))


def _taps(weight: Tensor) -> Tiles:
    """The weight (O, C, k, k) as tiles, for each output a row of them, with channels C."""
    return separate(rearrange(weight, "o c i j -> i j 1 o 1 c"))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], turned: bool
) -> Tensor:
    """A convolution of stride 1: (N, C, H, W) and (O, C, k, k) -> (N, O, H', W'), channels_last.

    `turned`: the kernels are turned by half, and their inputs are outputs: (C, O, k, k).
    """
    tiling = _tiling(x, weight.shape[2], padding)
    kernels = tiling.transformed("of_turned_kernels" if turned else "of_kernels", _taps(weight))
    kernels = kernels if turned else kernels.mT
    result = _empty_output(x, weight, bias, padding, turned)
    images, y = (rearrange(maps, "n c h w -> n h w c") for maps in (x, result))
    for block in tiling.blocks(sum(weight.shape[:2]), x.element_size()):
        tiles = tiling.transformed("of_inputs", tiling.of_map(images, block, padding))
        products = torch.bmm(tiles, kernels)
        target = tiling.of_map(y, block)
        shape = (tiling.tile, tiling.tile, *target.sizes)
        transform(tiling.side, "to_outputs", separate(products.view(shape)), target, bias)
    return result


def _empty_output(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], turned: bool
) -> Tensor:
    tiling, channels = _tiling(x, weight.shape[2], padding), weight.shape[turned]
    y = x.new_empty(tiling.images, tiling.height, tiling.width, channels)
    return rearrange(y, "n h w o -> n o h w")


def weight_gradient(grad: Tensor, x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    """The gradient of such a convolution's weight: (N, O, H', W') and x -> (O, C, k, k)."""
    tiling = _tiling(x, side, padding)
    images, grads = (rearrange(value, "n c h w -> n h w c") for value in (x, grad))
    channels, outputs = x.shape[1], grad.shape[1]
    products = x.new_empty(tiling.tile**2, outputs, channels)
    for i, block in enumerate(tiling.blocks(channels + outputs, x.element_size())):
        of_inputs = tiling.transformed("of_inputs", tiling.of_map(images, block, padding))
        of_grads = tiling.transformed("of_gradients", tiling.of_map(grads, block))
        products.baddbmm_(of_grads.mT, of_inputs, beta=min(i, 1))  # by 0 what was there is ignored
    result = _empty_gradient(grad, x, side, padding)
    tiles = products.view(tiling.tile, tiling.tile, 1, outputs, 1, channels)
    transform(side, "to_kernels", separate(tiles), _taps(result))
    return result


def _empty_gradient(grad: Tensor, x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1], side, side)


CONVOLVE = define(
    "winograd(Tensor x, Tensor weight, Tensor? bias, int[] padding, bool turned) -> Tensor",
    convolve,
    _empty_output,
)
WEIGHT_GRADIENT = define(
    "winograd_weight_gradient(Tensor grad, Tensor x, int side, int[] padding) -> Tensor",
    weight_gradient,
    _empty_gradient,
)


def tiled(x: Tensor, weight: Tensor, *how: Any) -> Tiling | None:
    """The tiles of a convolution of these arguments, if it can be done by enough of them."""
    stride, padding, *_ = how
    if not is_plain_convolution(x, weight, *how) or set(stride) != {1}:
        return None
    side = weight.shape[2]
    usual = weight.shape[3] == side and side in OUTPUTS and max(padding) < side
    if not usual or x.dtype not in SCALARS:
        return None
    tiling = _tiling(x, side, padding)
    return tiling if tiling.images * math.prod(tiling.counts) >= FEWEST_TILES else None


def saved(tiling: Tiling, weight: Tensor) -> float:
    """Multiplications that tiles save, for each number that has to be transformed for them."""
    outputs, inputs = weight.shape[:2]
    wanted = tiling.side**2 * tiling.height * tiling.width
    done = tiling.tile**2 * math.prod(tiling.counts)
    return (wanted / done - 1) * outputs * inputs / (outputs + inputs)


def is_faster(x: Tensor, weight: Tensor, *how: Any) -> bool:
    """Whether such a convolution, or the gradient of its input, is done faster by tiles.

    By multiplications saved: 1.0 to 1.3 times at 77 to 82 (96 to 192 channels to 32, 24×24 and
    12×12), 1.6 at 144 (64 to 192, 24×24); 0.9 at 66 (64 to 64, 7×7).  Where tiles are cut short,
    less: 0.8 at 80, 1.0 at 133 (6×6).
    """
    tiling = tiled(x, weight, *how)
    if tiling is None or saved(tiling, weight) < LEAST_SAVED:
        return False
    computed = tiling.step**2 * math.prod(tiling.counts)
    fits = computed <= MOST_WASTE * tiling.height * tiling.width
    return fits and library(tiling.side, x.dtype) is not None


def is_faster_for_weight(x: Tensor, weight: Tensor, *how: Any) -> bool:
    """Whether the gradient of such a convolution's weight is made faster by tiles.

    By multiplications saved: 1.1 to 1.3 times at 48 (32 to 32), 1.2 at 82 (96 to 208, 6×6), 1.6
    at 77 (128 to 32, 24×24), 2.5 at 162 (128 to 128, 12×12).
    """
    tiling = tiled(x, weight, *how)
    if tiling is None or saved(tiling, weight) < LEAST_SAVED_OF_WEIGHT:
        return False
    # Asked last, as the first answer begins to compile.
    return library(tiling.side, x.dtype) is not None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """`aten.convolution` where `is_faster`."""
    return CONVOLVE(channels_last(x), weight, bias, how[1], False)


def input_gradient(grad: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of such a convolution's input."""
    around = [weight.shape[2] - 1 - p for p in padding]
    return CONVOLVE(channels_last(grad), weight, None, around, True)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten.convolution_backward` where `is_faster_for_weight`; of the input too, if `is_faster`.

    The last argument is the mask of what is wanted: gradients of input, weight and bias.
    """
    *how, mask = rest
    grad_x = grad_weight = None
    if mask[0] and is_faster(x, weight, *how):
        grad_x = input_gradient(grad, weight, how[1])
    elif mask[0]:
        grad_x = layout.input_gradient(grad, x, weight, *how)
    if mask[1]:
        tiles = channels_last(grad), channels_last(x)
        grad_weight = in_format_of(weight, WEIGHT_GRADIENT(*tiles, weight.shape[2], how[1]))
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


FORWARD = Lowering(
    "winograd.forward",
    aten.convolution.default,
    lambda x, weight, bias, *how: is_faster(x, weight, *how),
    forward,
)
BACKWARD = Lowering(
    "winograd.backward",
    aten.convolution_backward.default,
    lambda grad, x, weight, bias_sizes, *how: is_faster_for_weight(x, weight, *how[:-1]),
    backward,
)
