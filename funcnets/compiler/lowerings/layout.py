"""Memory formats: which operations are faster on channels_last tensors on a CPU, and which not.

Arguments, and gradients of weights that are returned, keep the format that they had, so that a
training state looks the same whatever is chosen here; activations take the format of the operation
that computes them. Measured with oneDNN on two cores with AVX2, float32, milliseconds of NCHW
against channels_last:

- max pooling 3×3, stride 2, 192 channels of 24×24: 11.8 against 1.1;
- convolutions up to 3×3, forward and gradient of the input: 1.05 to 1.4 times faster, and up to
  3 times on maps of a few pixels; with larger kernels 0.6 to 0.8;
- gradient of the weight: 138 against 306 (64→128, 112×112), and 3 to 9 % slower on smaller maps,
  but 21 against 3.7 for the first layer's one channel (7×7, stride 2, batch 64).  On maps of up to
  36 pixels a matrix product over im2col's columns takes less than both: 79 and 110 against 11
  (512→512, 1×1), 21 and 26 against 3.8 (256→512, 2×2, stride 2), 0.74 and 0.75 against 0.57
  (32→128, 6×6, batch 16), but at 12×12 3.3 and 3.4 against 4.8 (32→96);
- the gradient of an input of 6 channels, with AVX-512 (5×5 kernels, 12×12, batch 256): 1.20 against
  1.64, in bfloat16 0.57 against 1.24, and there that of its weight 0.41 against 0.57;
- operations after a convolution to 6 channels (24×24, batch 256) are slower in channels_last, as
  the pixels don't fill a vector: mean and variance 2.4 against 5.9;
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
from funcnets.compiler.lowerings.convolution import Gradients, both_directions, is_plain_convolution
from funcnets.compiler.lowerings.table import Lowering

# Output pixels up to which oneDNN is slower than a matrix product over im2col's columns.
MAX_COLUMN_PIXELS, MAX_COLUMN_PIXELS_AVX512, MAX_COLUMN_PIXELS_AVX512_BFLOAT16 = 36, 4, 16
MAX_CHANNELS_LAST_TAPS = 9  # of a kernel: with more, NCHW is faster
MIN_CHANNELS_LAST = 8  # channels of a result: fewer don't fill a vector, and NCHW is faster

aten = torch.ops.aten


def in_faster_format(weight: Tensor, outputs: int, *tensors: Tensor) -> list[Tensor]:
    """Return `tensors` in the format in which a convolution with this weight is fastest.

    outputs: channels of the map that it computes.
    """
    taps, inputs = math.prod(weight.shape[2:]), weight.shape[1]
    has_many_taps = taps > MAX_CHANNELS_LAST_TAPS and inputs > 1 and not has_avx512()
    if outputs < MIN_CHANNELS_LAST or has_many_taps:
        return [tensor.contiguous() for tensor in tensors]
    return [channels_last(tensor) for tensor in tensors]


def is_small(side: Sequence[int], dtype: torch.dtype) -> bool:
    """True if oneDNN is slow for an output map of this height and width."""
    if not has_avx512():
        return math.prod(side) <= MAX_COLUMN_PIXELS
    if dtype is torch.bfloat16:
        return math.prod(side) <= MAX_COLUMN_PIXELS_AVX512_BFLOAT16
    return math.prod(side) <= MAX_COLUMN_PIXELS_AVX512


def is_pointwise(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], side: Sequence[int]
) -> bool:
    """True if the kernel is 1×1, and a matrix product over channels is faster.

    side: height and width of the input.
    """
    if math.prod(weight.shape[2:]) > 1 or any(padding):
        return False
    is_fast = has_avx512() and set(stride) == {1}
    return not is_fast or is_small(side, weight.dtype)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """Return `aten.convolution`, in the faster format, or as a matrix product for 1×1 kernels."""
    stride, padding, *_ = how
    result: Tensor
    if is_pointwise(weight, stride, padding, x.shape[2:]):
        result = POINTWISE(channels_last(x), weight, bias, stride)
    else:
        operands = in_faster_format(weight, len(weight), x, weight)
        result = aten.convolution(*operands, bias, *how)
    return result


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *rest: Any
) -> Gradients:
    """Return `aten.convolution_backward`, each gradient in its faster format.

    The last argument is the mask of gradients that are wanted: of input, weight and bias.
    """
    *how, mask = rest
    grad_x = input_gradient(grad, x, weight, *how) if mask[0] else None
    grad_weight = weight_gradient(grad, x, weight, *how) if mask[1] else None
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if mask[2] else None


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
    """Return the gradient of a convolution's input."""
    stride, padding, *_ = how
    result: Tensor
    if set(stride) == {1} and is_pointwise(weight, stride, padding, x.shape[2:]):
        transposed = rearrange(weight, "o c 1 1 -> c o 1 1")
        result = POINTWISE(channels_last(grad), transposed, None, stride)
    else:
        operands = in_faster_format(weight, x.shape[1], grad, x, weight)
        result = aten.convolution_backward(*operands, None, *how, [True, False, False])[0]
    return result


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
    """Return the gradient of a convolution's weight, in the memory format of the weight."""
    stride, padding, *_ = how
    pointwise = is_pointwise(weight, stride, padding, x.shape[2:])
    if pointwise or is_small(grad.shape[2:], x.dtype):
        maps = channels_last(grad), channels_last(x)
        result = COLUMN_GRADIENT(*maps, weight.shape[2:], stride, padding)
    else:
        has_few_inputs = weight.shape[1] < MIN_CHANNELS_LAST
        is_slow_bfloat16 = x.dtype is torch.bfloat16 and has_few_inputs
        is_faster = weight.shape[1] == 1 or (has_avx512() and not is_slow_bfloat16)
        # oneDNN can write beyond a channels_last gradient of such kernels (its issue 6035).
        is_safe = math.prod(weight.shape[2:]) > 1 or set(stride) == {1}
        to_format = channels_last if is_faster and is_safe else Tensor.contiguous
        operands = [to_format(tensor) for tensor in (grad, x, weight)]
        result = aten.convolution_backward(*operands, None, *how, [False, True, False])[1]
    return in_format_of(weight, result)


def in_format_of(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of a weight in the memory format of the weight."""
    if not weight.is_contiguous():
        return channels_last(gradient)
    # By way of one dimension: strides of dimensions of size 1 would be arbitrary otherwise.
    return gradient.flatten().view(weight.shape)


def as_rows(x: Tensor) -> Tensor:
    """Return the pixels of (N, C, H, W) as rows, (N·H·W, C)."""
    return rearrange(channels_last(x), "n c h w -> (n h w) c")


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """Return a convolution with 1×1 kernels, as a matrix product over channels; channels_last."""
    seen = x[:, :, :: stride[0], :: stride[1]]
    pixels, matrix = as_rows(seen), rearrange(weight, "o c 1 1 -> c o")
    product = pixels @ matrix if bias is None else torch.addmm(bias, pixels, matrix)
    return rearrange(product, "(n h w) c -> n c h w", h=seen.shape[2], w=seen.shape[3])


def _empty_pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]
) -> Tensor:
    sides = [-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True)]
    return rearrange(x.new_empty(len(x), *sides, len(weight)), "n h w c -> n c h w")


def column_gradient(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Return the gradient of a convolution's weight, as a matrix product over im2col's columns."""
    product = as_rows(grad).T @ columns(x, kernel, stride, padding)
    height, width = kernel
    return rearrange(product, "o (h w c) -> o c h w", h=height, w=width).contiguous()


# One operation each in the graph: their parts take longer to trace than to run.
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
    """Return im2col's columns with channels innermost, (N·H'·W', kh·kw·C)."""
    if math.prod(kernel) == 1 and not any(padding):
        return as_rows(x[:, :, :: stride[0], :: stride[1]])
    top, left = padding
    images = rearrange(channels_last(x), "n c h w -> n h w c")
    if any(padding):
        images = F.pad(images, (0, 0, left, left, top, top))
    windows = images.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return rearrange(windows, "n h w c i j -> (n h w) (i j c)")


def is_cpu_map(x: Tensor, *how: Any) -> bool:
    """True if `x` is (N, C, H, W) on the CPU."""
    return x.ndim == 4 and x.device.type == "cpu"


def prepare_max_pool(x: Tensor, *how: Any) -> None:
    """Begin to compile the kernel that the rule `fusion.max_pool` will use."""
    if max_pool.is_supported(x, *how):
        max_pool.KERNEL.begin(x.dtype)


def max_pool_forward(x: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    """Return `aten.max_pool2d_with_indices`, in channels_last."""
    maxima, indices = aten.max_pool2d_with_indices(channels_last(x), *how)
    return maxima, indices


def max_pool_backward(grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """Return `aten.max_pool2d_with_indices_backward`, in channels_last."""
    *how, indices = rest
    grad, x, indices = (channels_last(tensor) for tensor in (grad, x, indices))
    result: Tensor = aten.max_pool2d_with_indices_backward(grad, x, *how, indices)
    return result


FORWARD, BACKWARD = both_directions("layout", is_plain_convolution, forward, backward)
MAX_POOL_FORWARD = Lowering(
    "layout.max_pool_forward",
    aten.max_pool2d_with_indices.default,
    is_cpu_map,
    max_pool_forward,
    prepare_max_pool,
)
MAX_POOL_BACKWARD = Lowering(
    "layout.max_pool_backward",
    aten.max_pool2d_with_indices_backward.default,
    lambda grad, x, *how: is_cpu_map(x),
    max_pool_backward,
)
