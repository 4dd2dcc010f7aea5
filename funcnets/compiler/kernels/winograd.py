"""Winograd convolution in C++."""

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels.build import STORED
from funcnets.compiler.kernels.cpu import channels_last

STEP = 4  # a tile gives 4×4 outputs
POINTS = {  # and infinity: STEP+k-1 in all, by k
    3: ("0", "2/3", "-2/3", "3/2", "-3/2"),
    5: ("0", "1", "-1", "2", "-2", "1/2", "-1/2"),
}
TOGETHER = 48  # tiles of a convolution that a thread has in work at a time
SUMMED = 256  # tiles that are added up to a weight's gradient at a time

Matrix = tuple[tuple[float, ...], ...]


class Transforms(NamedTuple):
    """The three matrices, by rows: of inputs Bᵀ, of kernels G, of outputs Aᵀ."""

    inputs: Matrix
    kernels: Matrix
    outputs: Matrix


@functools.cache
def transforms(side: int) -> Transforms:
    """Cook and Toom's matrices for a kernel with so many taps a side."""
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
    evaluated = powers(STEP, [Fraction(1)] * infinity)
    return Transforms(
        _floats([product(k) for k in range(infinity + 1)]),
        _floats(powers(side, scale)),
        _floats(list(zip(*evaluated, strict=True))),
    )


def _floats(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def factors(side: int, dtype: torch.dtype) -> torch.dtype:
    """What the products are of: for 3×3 bfloat16 itself where the processor multiplies it fast.

    With 5×5 kernels bfloat16 would take 4 % of the result, and float32 saves more than it costs.
    """
    if dtype is torch.bfloat16 and not (side == 3 and torch.cpu._is_avx512_bf16_supported()):
        return torch.float32
    return dtype


@functools.cache
def library(side: int, dtype: torch.dtype) -> build.Library | None:
    """The convolutions with kernels of so many taps a side, compiled, if there is a compiler."""
    inputs, kernels, outputs = transforms(side)
    matrices = {
        "of_inputs": inputs,
        "of_kernels": kernels,
        "to_outputs": outputs,
        "of_gradients": _transposed(outputs),
        "to_kernels": _transposed(kernels),
    }
    structs = (_struct(name, matrix) for name, matrix in matrices.items())
    return build.begin_for(
        Path(__file__).with_name("winograd.cpp"),
        dtype,
        build.VECTORS,
        f"using Factor = {STORED[factors(side, dtype)]};",
        *structs,
        SIDE=side,
        STEP=STEP,
        TOGETHER=TOGETHER,
        SUMMED=SUMMED,
    )


def _struct(name: str, matrix: Matrix) -> str:
    """C++ that multiplies by `matrix`, of which zeros and ones take no time.

    Rows of a point and of its negative share what they are made of, even powers and odd ones.
    """
    lines = []
    rows = dict(enumerate(matrix))
    while rows:
        i, row = rows.popitem()
        even, odd = ([f * (k % 2 == which) for k, f in enumerate(row)] for which in (0, 1))
        signs = {j: _mirrored(row, other) for j, other in rows.items() if any(even) and any(odd)}
        mirror = next((j for j, sign in signs.items() if sign), None)
        if mirror is None:
            lines.append(f"y[{i} * of_y] = {_sum(row)};")
        else:
            del rows[mirror]
            difference = "even - odd" if signs[mirror] > 0 else "odd - even"
            lines.append(f"{{ const auto even = {_sum(even)}, odd = {_sum(odd)};")
            lines.append(f"y[{i} * of_y] = even + odd; y[{mirror} * of_y] = {difference}; }}")
    return (
        f"struct {name} {{ static constexpr int OUT = {len(matrix)}, IN = {len(matrix[0])};\n"
        "template <class V> static inline void times(const V* x, int of_x, V* y, int of_y) {\n"
        + "\n".join(lines)
        + "\n} };"
    )


def _mirrored(row: Sequence[float], other: Sequence[float]) -> int:
    """1 or -1 where that times `row` is `other` but for the sign of its odd powers; else 0."""
    turned = [f * (-1) ** k for k, f in enumerate(row)]
    return next((sign for sign in (1, -1) if [sign * f for f in turned] == list(other)), 0)


def _sum(row: Sequence[float]) -> str:
    terms = [f"Real({f}) * x[{i} * of_x]" for i, f in enumerate(row) if f]
    return " + ".join(term.removeprefix("Real(1.0) * ") for term in terms)


class Sizes(NamedTuple):
    """Those of a convolution of stride 1, as in winograd.cpp; without the weight's strides."""

    images: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    outputs: int
    above: int
    before: int

    @property
    def tiles(self) -> int:
        """How many there are of all images."""
        return self.images * -(-self.out_height // STEP) * -(-self.out_width // STEP)


def sizes(x: Tensor, outputs: int, side: int, padding: Sequence[int]) -> Sizes:
    """The sizes of a convolution of (N, C, H, W) to so many channels."""
    images, channels, height, width = x.shape
    out_height, out_width = (
        n + 2 * p - side + 1 for n, p in zip((height, width), padding, strict=True)
    )
    return Sizes(images, height, width, channels, out_height, out_width, outputs, *padding)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    turned: bool,
    rectified: bool = False,
) -> Tensor:
    """A convolution of stride 1: (N, C, H, W) and (O, C, k, k) -> (N, O, H', W'), channels_last.

    `turned`: the kernels are turned by half, and their inputs are outputs: (C, O, k, k).
    `rectified`: the result is the ReLU of it.
    """
    x, result = channels_last(x), _empty_output(x, weight, bias, padding, turned)
    begin, strides = 0, weight.stride()
    if turned:
        outputs, inputs, row, column = strides
        begin = (weight.shape[2] - 1) * (row + column)
        strides = inputs, outputs, -row, -column
    flat = None if bias is None else bias.contiguous()
    side = weight.shape[2]
    given = (*sizes(x, result.shape[1], side, padding), *strides, begin, rectified)
    build.call(library(side, x.dtype), "convolve", x, weight, flat, result, sizes=given)
    return result


def _empty_output(
    x: Tensor, weight: Tensor, bias: object, padding: Sequence[int], turned: bool, *_: object
) -> Tensor:
    given = sizes(x, weight.shape[turned], weight.shape[2], padding)
    y = x.new_empty(given.images, given.out_height, given.out_width, given.outputs)
    return rearrange(y, "n h w o -> n o h w")


def weight_gradient(grad: Tensor, x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    """The gradient of such a convolution's weight: (N, O, H', W') and x -> (O, C, k, k)."""
    grad, x, result = channels_last(grad), channels_last(x), _empty_gradient(grad, x, side, padding)
    given = (*sizes(x, grad.shape[1], side, padding), *result.stride(), 0, False)
    build.call(library(side, x.dtype), "weight_gradient", grad, x, result, sizes=given)
    return result


def _empty_gradient(grad: Tensor, x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1], side, side)


CONVOLVE = define(
    "winograd(Tensor x, Tensor weight, Tensor? bias, int[] padding, bool turned, "
    "bool rectified=False) -> Tensor",
    convolve,
    _empty_output,
)
WEIGHT_GRADIENT = define(
    "winograd_weight_gradient(Tensor grad, Tensor x, int side, int[] padding) -> Tensor",
    weight_gradient,
    _empty_gradient,
)
