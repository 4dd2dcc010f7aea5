"""Memory formats: which operations a CPU does faster on channels_last tensors, and which not.

Tensors that come in and gradients of weights that go out keep the format they had, so that a
training's state looks the same whatever is chosen here; activations take the format of the
operation that they come from.  Measured with oneDNN on two cores with AVX2, float32, as
milliseconds plain against channels_last:

- max pooling 3×3, stride 2, 192 channels of 24×24: 11.8 against 1.1;
- convolutions up to 3×3, forward and gradient of the input: 1.05 to 1.4 times faster, and up to
  3 times on maps of a few pixels; with wider kernels 0.6 to 0.8;
- gradient of the weight: 138 against 306 (64→128, 112×112), and 3 to 9 % slower on smaller maps,
  but 21 against 3.7 for the first layer's one channel (7×7, stride 2, batch 64).  On maps of up to
  36 pixels a matrix product over im2col's columns takes less than both: 79 and 110 against 11
  (512→512, 1×1), 21 and 26 against 3.8 (256→512, 2×2, stride 2), 0.74 and 0.75 against 0.57
  (32→128, 6×6, batch 16), but at 12×12 3.3 and 3.4 against 4.8 (32→96);
- the gradient of an input of 6 channels, with AVX-512 (5×5 kernels, 12×12, batch 256): 1.20 against
  1.64, in bfloat16 0.57 against 1.24, and there that of its weight 0.41 against 0.57;
- what follows a convolution to 6 channels (24×24, batch 256) is slower in channels_last, whose
  pixels don't fill a vector then: mean and variance 2.4 against 5.9;
- 1×1 kernels, for which the columns are the input itself, as matrix products: as fast on large
  maps, and up to 1.6 times faster on small ones.

With AVX-512 oneDNN's channels_last is faster almost everywhere, for 1×1 kernels of stride 1 than a
matrix product too: 6.0 against 7.7, gradient of the weight 6.3 against 8.1 (256→128, 12×12, batch
128).  Products remain for maps of a few pixels: 0.83 against 0.38, gradient 1.0 against 0.45
(256→512, 1×1, stride 2, batch 256), and in bfloat16, whose weight gradients oneDNN is slow at, 4.5
against 1.9 (128→256, 2×2).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import max_pool
from funcnets.compiler.kernels.cpu import channels_last, has_avx512
from funcnets.compiler.lowerings.convolution import both_ways, is_plain_convolution
from funcnets.compiler.lowerings.table import Lowering

# Output pixels, up to which oneDNN is slower than a matrix product over im2col's columns.
LARGEST_COLUMN_MAP = 36
LARGEST_COLUMN_MAP_AVX512, LARGEST_NARROW_COLUMN_MAP_AVX512 = 4, 16
WIDEST_KERNEL = 9  # taps, up to which channels_last is faster
FEWEST_CHANNELS = 8  # of a map that is made, from which channels_last is faster: they fill a vector

aten = torch.ops.aten


def suited(weight: Tensor, made: int, *tensors: Tensor) -> list[Tensor]:
    """`tensors` in the format in which a convolution with this weight is fastest.

    `made`: how many channels the map has that it gives.
    """
    taps, inputs = math.prod(weight.shape[2:]), weight.shape[1]
    is_wide = taps > WIDEST_KERNEL and inputs > 1 and not has_avx512()
    if made < FEWEST_CHANNELS or is_wide:
        return [tensor.contiguous() for tensor in tensors]
    return [channels_last(tensor) for tensor in tensors]


def is_small(side: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether an output map of this height and width is one that oneDNN is slow at."""
    if not has_avx512():
        return math.prod(side) <= LARGEST_COLUMN_MAP
    is_narrow = dtype is torch.bfloat16
    largest = LARGEST_NARROW_COLUMN_MAP_AVX512 if is_narrow else LARGEST_COLUMN_MAP_AVX512
    return math.prod(side) <= largest


def is_pointwise(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], side: Sequence[int]
) -> bool:
    """Whether the kernel is 1×1, and faster as a matrix product over channels; `side` goes in."""
    if math.prod(weight.shape[2:]) > 1 or any(padding):
        return False
    usual = has_avx512() and set(stride) == {1}
    return not usual or is_small(side, weight.dtype)


def _strided(side: Sequence[int], stride: Sequence[int]) -> list[int]:
    return [-(-n // s) for n, s in zip(side, stride, strict=True)]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """`aten.convolution` in the faster memory format, or as a matrix product where it is one."""
    stride, padding, *_ = how
    if is_pointwise(weight, stride, padding, x.shape[2:]):
        return POINTWISE(channels_last(x), weight, bias, stride)
    return aten.convolution(*suited(weight, len(weight), x, weight), bias, *how)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten.convolution_backward`, each gradient in its faster memory format.

    The last argument is the mask of what is wanted: gradients of input, weight and bias.
    """
    *how, mask = rest
    grad_x = input_gradient(grad, x, weight, *how) if mask[0] else None
    grad_weight = weight_gradient(grad, x, weight, *how) if mask[1] else None
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
    """The gradient of a convolution's input, by what is fastest for its shape."""
    stride, padding, *_ = how
    if set(stride) == {1} and is_pointwise(weight, stride, padding, x.shape[2:]):
        turned = rearrange(weight, "o c 1 1 -> c o 1 1")
        return POINTWISE(channels_last(grad), turned, None, stride)
    operands = suited(weight, x.shape[1], grad, x, weight)
    return aten.convolution_backward(*operands, None, *how, [True, False, False])[0]


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
    """The gradient of a convolution's weight, in its memory format, by what is fastest."""
    stride, padding, *_ = how
    pointwise = is_pointwise(weight, stride, padding, x.shape[2:])
    if pointwise or is_small(grad.shape[2:], x.dtype):
        tensors = channels_last(grad), channels_last(x)
        result = COLUMN_GRADIENT(*tensors, weight.shape[2:], stride, padding)
    else:
        is_few = x.dtype is torch.bfloat16 and weight.shape[1] < FEWEST_CHANNELS
        is_faster = weight.shape[1] == 1 or (has_avx512() and not is_few)
        # oneDNN can write beyond a channels_last gradient of such kernels (its issue 6035).
        is_safe = math.prod(weight.shape[2:]) > 1 or set(stride) == {1}
        to_format = channels_last if is_faster and is_safe else Tensor.contiguous
        operands = [to_format(tensor) for tensor in (grad, x, weight)]
        result = aten.convolution_backward(*operands, None, *how, [False, True, False])[1]
    return in_format_of(weight, result)


def in_format_of(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a weight in the memory format of the weight."""
    if not weight.is_contiguous():
        return channels_last(gradient)
    # Through one dimension, as strides along sides of 1 are arbitrary otherwise.
    return gradient.flatten().view(weight.shape)


def as_rows(x: Tensor) -> Tensor:
    """The pixels of (N, C, H, W) as (N·H·W, C)."""
    return rearrange(channels_last(x), "n c h w -> (n h w) c")


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """A convolution with 1×1 kernels, as a matrix product over channels; channels_last."""
    seen = x[:, :, :: stride[0], :: stride[1]]
    pixels, matrix = as_rows(seen), rearrange(weight, "o c 1 1 -> c o")
    product = pixels @ matrix if bias is None else torch.addmm(bias, pixels, matrix)
    return rearrange(product, "(n h w) c -> n c h w", h=seen.shape[2], w=seen.shape[3])


def _empty_pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]
) -> Tensor:
    result = x.new_empty(len(x), *_strided(x.shape[2:], stride), len(weight))
    return rearrange(result, "n h w c -> n c h w")


def column_gradient(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The gradient of a convolution's weight as a matrix product over im2col's columns."""
    product = as_rows(grad).T @ columns(x, kernel, stride, padding)
    height, width = kernel
    return rearrange(product, "o (h w c) -> o c h w", h=height, w=width).contiguous()


# One operation each in the graph, as their parts take longer to trace than to run.
POINTWISE = define(
    "pointwise(Tensor x, Tensor weight, Tensor? bias, int[] stride) -> Tensor",
    pointwise,
    _empty_pointwise,
)
COLUMN_GRADIENT = define(
    "column_gradient(Tensor grad, Tensor x, int[] kernel, int[] stride, int[] padding) -> Tensor",
    column_gradient,
    lambda grad, x, kernel, *how: x.new_empty(grad.shape[1], x.shape[1], *kernel),
)


def columns(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """What each output pixel sees, (N·H'·W', kh·kw·C): im2col with the channels innermost."""
    if math.prod(kernel) == 1 and not any(padding):
        return as_rows(x[:, :, :: stride[0], :: stride[1]])
    top, left = padding
    images = rearrange(channels_last(x), "n c h w -> n h w c")
    if any(padding):
        images = F.pad(images, (0, 0, left, left, top, top))
    windows = images.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return rearrange(windows, "n h w c i j -> (n h w) (i j c)")


def pool_forward(x: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    """`aten.max_pool2d_with_indices` on channels_last."""
    x = channels_last(x)
    max_pool.is_usual(x, *how)  # begins to compile what `fusion.max_pool` takes
    return aten.max_pool2d_with_indices(x, *how)


def pool_backward(grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """`aten.max_pool2d_with_indices_backward` on channels_last."""
    *how, indices = rest
    operands = [channels_last(tensor) for tensor in (grad, x)]
    return aten.max_pool2d_with_indices_backward(*operands, *how, channels_last(indices))


FORWARD, BACKWARD = both_ways("layout.", is_plain_convolution, forward, backward)
POOL_FORWARD = Lowering(
    "layout.pool_forward",
    aten.max_pool2d_with_indices.default,
    lambda x, *how: x.ndim == 4 and x.device.type == "cpu",
    pool_forward,
)
POOL_BACKWARD = Lowering(
    "layout.pool_backward",
    aten.max_pool2d_with_indices_backward.default,
    lambda grad, x, *how: x.ndim == 4 and x.device.type == "cpu",
    pool_backward,
)
