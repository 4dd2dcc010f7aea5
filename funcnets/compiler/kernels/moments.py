"""Statistics of each channel in C++."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels.build import SCALARS

aten = torch.ops.aten


FEWEST_PIXELS = 16  # of a plain map, from which a plane fills vectors


def _is_last(x: Tensor) -> bool:
    """Whether the map is rows of channels in memory."""
    return x.ndim == 2 or x.is_contiguous(memory_format=torch.channels_last)


def _fills_vectors(x: Tensor) -> bool:
    return _is_last(x) or math.prod(x.shape[2:]) >= FEWEST_PIXELS


@functools.cache
def library(dtype: torch.dtype) -> build.Library | None:
    """The sums in C++, if there is a compiler."""
    return build.begin_for(Path(__file__).with_name("moments.cpp"), dtype, build.VECTORS)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of maps (N, C, ...), of bfloat16 in float32."""
    mean, variance = _of_channels("moments", [x], *_empty_numbers(x))
    return mean, variance


def channel_sums(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of grad·x and of grad over all but the channels: (C,) each, of bfloat16 in float32.

    It is what the derivative of batch norm computes first.
    """
    is_narrow = x.dtype not in SCALARS
    if is_narrow or (_fills_vectors(x) and library(x.dtype) is not None):
        products, sums = _of_channels("sums", [grad, x], *_empty_numbers(x))
        return products, sums
    mean, scale = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    how = (None, None, None, mean, scale, True, 0.0, [False, True, True])
    _, products, sums = aten.native_batch_norm_backward(grad, x, *how)
    return products, sums


def channel_sum(x: Tensor) -> Tensor:
    """The sum over all but the channels of maps in bfloat16, (C,), rounded once."""
    return _of_channels("sum", [x], _empty_sum(x))[0]


def _empty_sum(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1])


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """x·scale + shift, or without the shift, of maps without gaps; (C,) each, as `computed`.

    Maps in bfloat16 are read and written as they are, and rounded once.
    """
    result = _empty_scaled(x, scale, shift)
    build.call(library(x.dtype), "scaled", *_alike(x), scale, shift, result, sizes=_sizes(x))
    return result


def _empty_scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def _of_channels(name: str, maps: Sequence[Tensor], *results: Tensor) -> tuple[Tensor, ...]:
    x = maps[-1]
    build.call(library(x.dtype), name, *_alike(*maps), *results, sizes=_sizes(x))
    return results


def _alike(*maps: Tensor) -> list[Tensor]:
    """The maps in the memory format of the last."""
    x = maps[-1]
    rows = torch.channels_last if x.ndim == 4 and _is_last(x) else torch.contiguous_format
    return [each.contiguous(memory_format=rows) for each in maps]


def _sizes(x: Tensor) -> tuple[int, int, int]:
    if _is_last(x):
        return x.numel() // x.shape[1], x.shape[1], 0
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _empty_numbers(*maps: Tensor) -> tuple[Tensor, Tensor]:
    x = maps[-1]
    dtype = build.computed(x.dtype)
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


CHANNEL_MOMENTS = define(
    "channel_moments(Tensor x) -> (Tensor, Tensor)", channel_moments, _empty_numbers
)
CHANNEL_SUMS = define(
    "channel_sums(Tensor grad, Tensor x) -> (Tensor, Tensor)", channel_sums, _empty_numbers
)
SCALED = define("scaled(Tensor x, Tensor scale, Tensor? shift) -> Tensor", scaled, _empty_scaled)
CHANNEL_SUM = define("channel_sum(Tensor x) -> Tensor", channel_sum, _empty_sum)
