"""Average pools in C++."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build


def _sides(size: Sequence[int]) -> tuple[int, int]:
    return size[0], size[-1]


@functools.cache
def library(height: int, width: int, dtype: torch.dtype) -> build.Library | None:
    """The pools of windows of this size, if there is a compiler."""
    path = Path(__file__).with_name("avg_pool.cpp")
    return build.begin_for(path, dtype, HEIGHT=height, WIDTH=width)


def average(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """`aten.avg_pool2d` where `is_apart`."""
    result = _empty_average(x, kernel)
    _call("average", kernel, x.contiguous(), result, result.shape)
    return result


def spread(grad: Tensor, kernel: Sequence[int]) -> Tensor:
    """`aten.avg_pool2d_backward` where `is_apart`."""
    result = _empty_spread(grad, kernel)
    _call("spread", kernel, grad.contiguous(), result, grad.shape)
    return result


def _call(
    name: str, kernel: Sequence[int], given: Tensor, result: Tensor, shape: Sequence[int]
) -> None:
    images, channels, height, width = shape
    compiled = library(*_sides(kernel), given.dtype)
    build.call(compiled, name, given, result, sizes=(images * channels, height, width))


def _empty_average(x: Tensor, kernel: Sequence[int]) -> Tensor:
    sides = (n // k for n, k in zip(x.shape[2:], _sides(kernel), strict=True))
    return x.new_empty(*x.shape[:2], *sides)


def _empty_spread(grad: Tensor, kernel: Sequence[int]) -> Tensor:
    sides = (n * k for n, k in zip(grad.shape[2:], _sides(kernel), strict=True))
    return grad.new_empty(*grad.shape[:2], *sides)


AVERAGE = define("average(Tensor x, int[] kernel) -> Tensor", average, _empty_average)
SPREAD = define("spread(Tensor grad, int[] kernel) -> Tensor", spread, _empty_spread)
