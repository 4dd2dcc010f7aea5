"""Winograd convolution: convolutions of stride 1 by fewer multiplications.

A tile of m×m outputs of a k×k kernel depends on (m+k-1)² inputs. Small fixed matrices transform
the tile and the kernel to that many numbers each; these are multiplied element by element, which
over channels makes (m+k-1)² matrix products; a third matrix transforms the result:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A

For 4×4 outputs a 3×3 kernel takes 36 multiplications instead of 144, a 5×5 kernel 64 instead of
400. The transposed formulas give the gradient of the weight; that of the input is such a
convolution itself. (Lavin and Gray, 2015, "Fast algorithms for convolutional neural networks"; the
matrices are Cook's and Toom's, which evaluate polynomials at some points and infinity.)

Everything is C++, compiled while the graph is traced; without a compiler convolutions stay ATen's.
Rounding errors are a few times those of a direct convolution: up to 2e-6 (3×3) and 1e-5 (5×5) of
the largest number in float32, and 2e-2 in bfloat16 (3×3), where rounding the output alone takes up
to 4e-3. The points 0, ±2/3 and ±3/2 leave less than half of the error of 0, ±1 and ±2 (Barabasz et
al., 2020, "Error analysis and improving the accuracy of Winograd convolution for deep neural
networks"). An infinite input makes all outputs of its tile NaN.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets._torch import has_amx
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels import winograd as kernel
from funcnets.compiler.kernels.cpu import contiguous_channels_last, has_avx512, has_bfloat16
from funcnets.compiler.lowerings.convolution import Gradients, both_directions, is_plain_convolution
from funcnets.compiler.lowerings.layout import in_format_of

# Multiplications saved for each number that is transformed, as `saved` returns them.
MIN_SAVED, MIN_SAVED_AVX512 = 29, 60
aten = torch.ops.aten


def saved(sizes: kernel.Sizes, side: int, cost: float = 1) -> float:
    """Return the multiplications that tiles save, for each number to be transformed for them.

    cost: time of a multiplication in tiles, in multiplications of the direct convolution.
    """
    inputs, outputs, tiles = sizes.channels, sizes.outputs, sizes.tiles
    direct = side**2 * sizes.images * sizes.out_height * sizes.out_width
    done = cost * (kernel.OUTPUT_TILE + side - 1) ** 2 * tiles
    # Kernels are transformed without vectors, and again for each batch: they count three times.
    transformed = tiles * (inputs + outputs) + 3 * inputs * outputs
    return (direct / done - 1) * tiles * inputs * outputs / transformed


def is_faster(x: Tensor, weight: Tensor, *how: Any) -> bool:
    """True if a square kernel of stride 1 saves enough multiplications by tiles, on this CPU.

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
    fits = weight.shape[3] == side and side in kernel.POINTS and max(padding) < side
    if not fits or x.dtype not in build.MEMORY_TYPES:
        return False
    cost = 1
    if x.dtype is torch.bfloat16 and has_bfloat16():
        if has_amx():
            return False  # AMX multiplies four times as fast as vectors, or faster
        cost = 1 if kernel.factor_dtype(side, x.dtype) is x.dtype else 2
    least = MIN_SAVED_AVX512 if has_avx512() else MIN_SAVED
    sizes = kernel.sizes(x, weight.shape[0], side, padding)
    return saved(sizes, side, cost) >= least and build.is_available()


def prepare(x: Tensor, weight: Tensor, *how: Any) -> None:
    """Begin to compile the kernel for this side of the weight."""
    kernel.KERNEL.begin(x.dtype, *kernel.settings(weight.shape[2], x.dtype))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """Return `aten.convolution`, in channels_last."""
    result: Tensor = kernel.CONVOLUTION(contiguous_channels_last(x), weight, bias, how[1], False)
    return result


def input_gradient(grad: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """Return the gradient of the input, as a convolution of `grad` with the transposed weight."""
    around = [weight.shape[2] - 1 - p for p in padding]
    result: Tensor = kernel.CONVOLUTION(contiguous_channels_last(grad), weight, None, around, True)
    return result


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> Gradients:
    """Return `aten.convolution_backward`.

    The last argument is the mask of gradients that are wanted: of input, weight and bias.
    """
    *how, mask = rest
    grad_x = grad_weight = None
    grad = contiguous_channels_last(grad)
    if mask[0]:
        grad_x = input_gradient(grad, weight, how[1])
    if mask[1]:
        grad_weight = kernel.WEIGHT_GRADIENT(
            grad, contiguous_channels_last(x), weight.shape[2], how[1]
        )
        grad_weight = in_format_of(weight, grad_weight)
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


FORWARD, BACKWARD = both_directions("winograd", is_faster, forward, backward, prepare)
