"""Winograd convolution in C++, F(4×4, 3×3) and F(4×4, 5×5), on channels_last feature maps."""

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcnets._torch import has_avx512_bfloat16
from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels.cpu import contiguous_channels_last

OUTPUT_TILE = 4  # side of a tile of outputs
POINTS = {  # of interpolation, by side of the kernel; infinity is one more
    3: ("0", "2/3", "-2/3", "3/2", "-3/2"),
    5: ("0", "1", "-1", "2", "-2", "1/2", "-1/2"),
}
TILES_PER_BLOCK = 48  # tiles that a thread convolves at a time
TILES_PER_SUM = 256  # tiles that are summed to a weight's gradient at a time

Matrix = tuple[tuple[float, ...], ...]


class Transforms(NamedTuple):
    """The three matrices, by rows: Bᵀ of inputs, G of kernels, Aᵀ of outputs."""

    inputs: Matrix
    kernels: Matrix
    outputs: Matrix


@functools.cache
def transforms(side: int) -> Transforms:
    """Return the Cook-Toom matrices for kernels of side × side taps."""
    points = [Fraction(point) for point in POINTS[side]]
    scale = [_value(_product(points, k), point) for k, point in enumerate(points)]
    evaluated = _powers(points, OUTPUT_TILE, [Fraction(1)] * len(points))
    return Transforms(
        _floats([_product(points, k) for k in range(len(points) + 1)]),
        _floats(_powers(points, side, scale)),
        _floats(list(zip(*evaluated, strict=True))),
    )


def _powers(
    points: Sequence[Fraction], count: int, scale: Sequence[Fraction]
) -> list[list[Fraction]]:
    """Return the first powers of each point, divided by its scale, and a row for infinity."""
    rows = [[p**i / s for i in range(count)] for p, s in zip(points, scale, strict=True)]
    return [*rows, [Fraction(i == count - 1) for i in range(count)]]


def _product(points: Sequence[Fraction], left_out: int) -> list[Fraction]:
    """Return the coefficients, from x⁰ up, of the product of (x - p) over the other points."""
    result = [Fraction(1)]
    for p in [*points[:left_out], *points[left_out + 1 :]]:
        shifted, scaled = [Fraction(0), *result], [*(p * c for c in result), Fraction(0)]
        result = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return result + [Fraction(0)] * (len(points) + 1 - len(result))


def _value(coefficients: Sequence[Fraction], at: Fraction) -> Fraction:
    """Return the value of a polynomial at a point."""
    return sum((c * at**i for i, c in enumerate(coefficients)), Fraction(0))


def _floats(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def factor_dtype(side: int, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the factors in products: bfloat16 where it is fast and precise enough.

    That is for 3×3 kernels, on processors with AVX512_BF16. With 5×5 kernels the error would be
    4 % of the result, and float32 saves more multiplications than it costs.
    """
    if dtype is torch.bfloat16 and not (side == 3 and has_avx512_bfloat16()):
        return torch.float32
    return dtype


def _declarations(dtype: torch.dtype, side: int, factor: torch.dtype) -> str:
    inputs, kernels, outputs = transforms(side)
    matrices = {
        "InputTransform": inputs,
        "KernelTransform": kernels,
        "OutputTransform": outputs,
        "GradientTransform": _transposed(outputs),
        "WeightTransform": _transposed(kernels),
    }
    sizes = build.constants(
        SIDE=side,
        OUTPUT_TILE=OUTPUT_TILE,
        TILES_PER_BLOCK=TILES_PER_BLOCK,
        TILES_PER_SUM=TILES_PER_SUM,
    )
    structs = [_struct(name, matrix) for name, matrix in matrices.items()]
    return "\n".join(
        [sizes, build.VECTORS, f"using Factor = {build.MEMORY_TYPES[factor]};", *structs]
    )


KERNEL = build.Kernel(Path(__file__).with_suffix(".cpp"), _declarations)


def settings(side: int, dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """Return what `KERNEL` is compiled for beside the dtype."""
    return side, factor_dtype(side, dtype)


def _struct(name: str, matrix: Matrix) -> str:
    """Return C++ that multiplies by `matrix`, without operations for its zeros and ones.

    The rows of a point and of its negative share the sums of even and of odd powers.
    """
    lines = []
    rows = dict(enumerate(matrix))
    while rows:
        i, row = rows.popitem()
        even, odd = ([f * (k % 2 == which) for k, f in enumerate(row)] for which in (0, 1))
        signs = {j: _mirrored(row, other) for j, other in rows.items() if any(even) and any(odd)}
        mirror = next((j for j, sign in signs.items() if sign), None)
        if mirror is None:
            lines.append(f"y[{i} * y_stride] = {_sum(row)};")
        else:
            del rows[mirror]
            difference = "even - odd" if signs[mirror] > 0 else "odd - even"
            lines.append(f"{{ const auto even = {_sum(even)}, odd = {_sum(odd)};")
            lines.append(
                f"y[{i} * y_stride] = even + odd; y[{mirror} * y_stride] = {difference}; }}"
            )
    arguments = "const V* x, int x_stride, V* y, int y_stride"
    return (
        f"struct {name} {{ static constexpr int OUT = {len(matrix)}, IN = {len(matrix[0])};\n"
        f"template <class V> static inline void times({arguments}) {{\n"
        + "\n".join(lines)
        + "\n} };"
    )


def _mirrored(row: Sequence[float], other: Sequence[float]) -> int:
    """Return 1 or -1 if `other` is that times `row` with odd powers negated; else 0."""
    negated = [f * (-1) ** k for k, f in enumerate(row)]
    return next((sign for sign in (1, -1) if [sign * f for f in negated] == list(other)), 0)


def _sum(row: Sequence[float]) -> str:
    terms = [f"Real({f}) * x[{i} * x_stride]" for i, f in enumerate(row) if f]
    return " + ".join(term.removeprefix("Real(1.0) * ") for term in terms)


class Sizes(NamedTuple):
    """Sizes of a convolution of stride 1, as winograd.cpp has them before the weight's strides."""

    images: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    outputs: int
    padding_top: int
    padding_left: int

    @property
    def tiles(self) -> int:
        """Number of tiles, of all images."""
        return self.images * -(-self.out_height // OUTPUT_TILE) * -(-self.out_width // OUTPUT_TILE)


def sizes(x: Tensor, outputs: int, side: int, padding: Sequence[int]) -> Sizes:
    """Return the sizes of a convolution of `x` (N, C, H, W) to `outputs` channels."""
    images, channels, height, width = x.shape
    out_height, out_width = (
        n + 2 * p - side + 1 for n, p in zip((height, width), padding, strict=True)
    )
    top, left = padding
    return Sizes(images, height, width, channels, out_height, out_width, outputs, top, left)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    transposed: bool,
    relu: bool = False,
) -> Tensor:
    """Return a convolution of stride 1: (N, C, H, W), (O, C, k, k) -> (N, O, H', W').

    The result is channels_last.

    transposed: use the weight of a transposed convolution, (C, O, k, k), as for the gradient of
        the input.
    relu: apply ReLU to the result.
    """
    x, result = contiguous_channels_last(x), _empty_result(x, weight, bias, padding, transposed)
    begin, strides = 0, weight.stride()
    if transposed:
        outputs, inputs, row, column = strides
        begin = (weight.shape[2] - 1) * (row + column)
        strides = inputs, outputs, -row, -column
    bias = None if bias is None else bias.contiguous()
    side = weight.shape[2]
    given = (*sizes(x, result.shape[1], side, padding), *strides, begin, relu)
    compiled = settings(side, x.dtype)
    KERNEL.call("convolution", compiled, x, weight, bias, result, sizes=given)
    return result


def _empty_result(
    x: Tensor, weight: Tensor, bias: object, padding: Sequence[int], transposed: bool, *_: object
) -> Tensor:
    given = sizes(x, weight.shape[transposed], weight.shape[2], padding)
    y = x.new_empty(given.images, given.out_height, given.out_width, given.outputs)
    return rearrange(y, "n h w o -> n o h w")


def weight_gradient(grad: Tensor, x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    """Return the gradient of the weight: (N, O, H', W'), (N, C, H, W) -> (O, C, side, side)."""
    grad, x = contiguous_channels_last(grad), contiguous_channels_last(x)
    result = _empty_weight(grad, x, side, padding)
    given = (*sizes(x, grad.shape[1], side, padding), *result.stride(), 0, False)
    KERNEL.call("weight_gradient", settings(side, x.dtype), grad, x, result, sizes=given)
    return result


def _empty_weight(grad: Tensor, x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1], side, side)


CONVOLUTION = define(
    "winograd(Tensor x, Tensor weight, Tensor? bias, int[] padding, bool transposed, "
    "bool relu=False) -> Tensor",
    convolution,
    _empty_result,
)
WEIGHT_GRADIENT = define(
    "winograd_weight_gradient(Tensor grad, Tensor x, int side, int[] padding) -> Tensor",
    weight_gradient,
    _empty_weight,
)
