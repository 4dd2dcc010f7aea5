"""Winograd's minimal filtering: convolutions of stride 1 by fewer multiplications.

A tile of m×m outputs of a k×k kernel sees (m+k-1)² inputs.  Both it and the kernel are turned into
that many numbers by small fixed matrices; these are multiplied one by one, which over channels
makes (m+k-1)² matrix products, and a third matrix turns the result back:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A

For 4×4 outputs a 3×3 kernel takes 36 multiplications in place of 144, a 5×5 kernel 64 in place of
400.  The transposed formulas give the gradient of the weight; that of the input is such a
convolution again.  (Lavin and Gray, 2015, "Fast algorithms for convolutional neural networks"; the
matrices are Cook and Toom's, which evaluate polynomials at some points and infinity.)

All of it is C++, compiled while the graph is traced; without a compiler convolutions stay ATen's.
Rounding errors are a few times those of a direct convolution: up to 2e-6 (3×3) and 1e-5 (5×5) of
the largest number in float32, and 2e-2 in bfloat16 (3×3), where rounding the output alone takes up
to 4e-3.  The points 0, ±2/3 and ±3/2 leave less than half of the error of 0, ±1 and
±2 (Barabasz et al., 2020, "Error analysis and improving the accuracy of Winograd convolution for
deep neural networks").  An infinite number spreads over the outputs of its tile, as no number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.kernels.build import STORED
from funcnets.compiler.kernels.cpu import channels_last, has_avx512, has_bfloat16
from funcnets.compiler.kernels.winograd import (
    CONVOLVE,
    POINTS,
    STEP,
    WEIGHT_GRADIENT,
    Sizes,
    factors,
    library,
    sizes,
)
from funcnets.compiler.lowerings.convolution import both_ways, is_plain_convolution
from funcnets.compiler.lowerings.layout import in_format_of

# Multiplications for each number that is transformed, by `saved`.
LEAST_SAVED, LEAST_SAVED_AVX512 = 29, 60
aten = torch.ops.aten


def saved(given: Sizes, side: int, cost: float = 1) -> float:
    """Multiplications that tiles save, for each number that has to be transformed for them.

    `cost`: how many of the direct convolution's take as long as one of the tiles'.
    """
    inputs, outputs, tiles = given.channels, given.outputs, given.tiles
    direct = side**2 * given.images * given.out_height * given.out_width
    done = cost * (STEP + side - 1) ** 2 * tiles
    # Kernels are transformed number by number, and for each batch anew.
    transformed = tiles * (inputs + outputs) + 3 * inputs * outputs
    return (direct / done - 1) * tiles * inputs * outputs / transformed


def is_faster(x: Tensor, weight: Tensor, *how: Any) -> bool:
    """Whether such a convolution, or a gradient of it, is done faster by tiles, and can be.

    By multiplications saved, on two cores with AVX-512, against the better of oneDNN's two memory
    formats: for the output, the gradients of input and of weight, in float32 and in bfloat16:
    2.8, 2.8, 2.5 and 2.7, 2.7, 2.4 times at 400 (256 to 384, 12×12); 2.0, 2.3, 1.7 and 2.0, 2.0,
    1.6 at 140 (64 to 192, 24×24); 1.4, 1.4, 1.0 and 1.2, 1.2, 1.4 at 62 (64 to 64, 7×7); 1.3, 1.0,
    0.6 and 1.1, 0.9, 1.0 at 27 (32 to 64, 6×6).  With AVX2, in float32: 2.0, 1.9, 2.1 at 140; 1.5,
    1.5, 1.7 at 60; 1.6, 1.3, 1.9 at 48 (32 to 128, 4×4); 1.0, 1.2, 2.0 at 31 (176 to 32, 6×6); 1.0,
    0.8, 1.1 at 28 (32 to 128, 6×6).
    """
    stride, padding, *_ = how
    if not is_plain_convolution(x, weight, *how) or set(stride) != {1}:
        return False
    side = weight.shape[2]
    usual = weight.shape[3] == side and side in POINTS and max(padding) < side
    if not usual or x.dtype not in STORED:
        return False
    cost = 1
    if x.dtype is torch.bfloat16 and has_bfloat16():
        if torch.cpu._is_amx_tile_supported():
            return False  # products in AMX take a fourth or less of a vector's time
        cost = 1 if factors(side, x.dtype) is x.dtype else 2
    least = LEAST_SAVED_AVX512 if has_avx512() else LEAST_SAVED
    if saved(sizes(x, weight.shape[0], side, padding), side, cost) < least:
        return False
    # Asked last, as the first answer begins to compile.
    return library(side, x.dtype) is not None


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
    """`aten.convolution_backward` where `is_faster`.

    The last argument is the mask of what is wanted: gradients of input, weight and bias.
    """
    *how, mask = rest
    grad_x = grad_weight = None
    if mask[0]:
        grad_x = input_gradient(grad, weight, how[1])
    if mask[1]:
        tiles = channels_last(grad), channels_last(x)
        grad_weight = in_format_of(weight, WEIGHT_GRADIENT(*tiles, weight.shape[2], how[1]))
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


FORWARD, BACKWARD = both_ways("winograd.", is_faster, forward, backward)
