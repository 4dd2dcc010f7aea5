"""Statistics by channel in C++, and feature maps scaled and shifted by channel."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build

MIN_PIXELS = 16  # of a plane of an NCHW map: fewer don't fill vectors

aten = torch.ops.aten
KERNEL = build.Kernel(Path(__file__).with_suffix(".cpp"), lambda dtype: build.VECTORS)


def is_rows(x: Tensor) -> bool:
    """True if `x` is rows of channels in memory: (N, C), or (N, C, H, W) in channels_last."""
    return x.ndim == 2 or x.is_contiguous(memory_format=torch.channels_last)


def fills_vectors(x: Tensor) -> bool:
    """True if neighbours in memory are enough for SIMD vectors: rows, or planes of many pixels."""
    return is_rows(x) or math.prod(x.shape[2:]) >= MIN_PIXELS


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, (C,) each; of bfloat16 in float32."""
    mean, variance = _reduced("moments", [x], *_empty_pair(x))
    return mean, variance


def channel_sums(grad: Tensor, x: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sums of grad·(x - center) and of grad over all dimensions but channels, (C,) each.

    `center` is (C,), or None for 0. It and the sums are in float32 if the maps are bfloat16.
    The derivative of batch norm begins with these.
    """
    is_bfloat16 = x.dtype not in build.FLOAT_TYPES
    if is_bfloat16 or (fills_vectors(x) and build.is_available()):
        products, sums = _empty_pair(x)
        maps = _like_last(grad, x)
        KERNEL.call("product_sums", (), *maps, center, products, sums, sizes=_sizes(x))
        return products, sums
    mean = x.new_zeros(x.shape[1]) if center is None else center
    scale = x.new_ones(x.shape[1])
    rest = (None, None, None, mean, scale, True, 0.0, [False, True, True])
    _, products, sums = aten.native_batch_norm_backward(grad, x, *rest)
    return products, sums


def channel_sum(x: Tensor) -> Tensor:
    """Return the sum of a bfloat16 map over all dimensions but channels, (C,), rounded once."""
    return _reduced("sum", [x], _empty_sum(x))[0]


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Return x·scale + shift by channel, in the memory format of `x`, rounded once.

    `scale` and `shift` are (C,), of the dtype in registers (float32 for bfloat16).
    """
    result = _empty_scaled(x, scale, shift)
    (x,) = _like_last(x)
    KERNEL.call("scale_and_shift", (), x, scale, shift, result, sizes=_sizes(x))
    return result


def _reduced(function: str, maps: Sequence[Tensor], *results: Tensor) -> tuple[Tensor, ...]:
    KERNEL.call(function, (), *_like_last(*maps), *results, sizes=_sizes(maps[-1]))
    return results


def _like_last(*maps: Tensor) -> list[Tensor]:
    """Return the maps in the memory format of the last one."""
    x = maps[-1]
    rows = torch.channels_last if x.ndim == 4 and is_rows(x) else torch.contiguous_format
    return [each.contiguous(memory_format=rows) for each in maps]


def _sizes(x: Tensor) -> tuple[int, int, int]:
    if is_rows(x):
        return x.numel() // x.shape[1], x.shape[1], 0
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _empty_pair(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = build.register_dtype(x.dtype)
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


def _empty_sums(grad: Tensor, x: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    return _empty_pair(x)


def _empty_sum(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1])


def _empty_scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    return torch.empty_like(x)


CHANNEL_MOMENTS = define(
    "channel_moments(Tensor x) -> (Tensor, Tensor)", channel_moments, _empty_pair
)
CHANNEL_SUMS = define(
    "channel_sums(Tensor grad, Tensor x, Tensor? center) -> (Tensor, Tensor)",
    channel_sums,
    _empty_sums,
)
CHANNEL_SUM = define("channel_sum(Tensor x) -> Tensor", channel_sum, _empty_sum)
SCALE_AND_SHIFT = define(
    "scale_and_shift(Tensor x, Tensor scale, Tensor? shift) -> Tensor",
    scale_and_shift,
    _empty_scaled,
)
