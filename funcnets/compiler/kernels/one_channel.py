"""Convolutions of one input channel in C++, with results in channels_last."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from funcnets.compiler.graph.operators import define
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels.cpu import contiguous_channels_last
from funcnets.compiler.kernels.geometry import geometry

CHANNEL_BLOCK_BYTES = 128  # of output channels at a time, in two to four vectors
ACCUMULATORS = 6  # pixels of a row, or taps; with two vectors each, 12 of 16 registers
PARTIAL_SUMS = 16  # of a weight's gradient, for any number of threads


def _declarations(
    dtype: torch.dtype, rows: int, columns: int, stride_y: int, stride_x: int, top: int, left: int
) -> str:
    sizes = build.constants(
        ROWS=rows,
        COLUMNS=columns,
        STRIDE_Y=stride_y,
        STRIDE_X=stride_x,
        PADDING_TOP=top,
        PADDING_LEFT=left,
        ACCUMULATORS=ACCUMULATORS,
        PARTIAL_SUMS=PARTIAL_SUMS,
    )
    return f"{build.VECTORS}\n{sizes}"


KERNEL = build.Kernel(Path(__file__).with_suffix(".cpp"), _declarations)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the convolution of `x` (N, 1, H, W) with `weight` (O, 1, kh, kw); channels_last."""
    result = _empty_result(x, weight, bias, stride, padding)
    taps = rearrange(weight, "o 1 h w -> h w o").contiguous()
    bias = None if bias is None else bias.contiguous()
    settings, sizes = (*weight.shape[2:], *stride, *padding), _sizes(x, result)
    KERNEL.call("convolution", settings, x.contiguous(), taps, bias, result, sizes=sizes)
    return result


def weight_gradient(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the gradient of the weight, of height and width `kernel`, from that of the output."""
    sums = x.new_empty(PARTIAL_SUMS, *kernel, grad.shape[1])
    settings, maps = (*kernel, *stride, *padding), (x.contiguous(), contiguous_channels_last(grad))
    KERNEL.call("weight_gradient", settings, *maps, sums, sizes=_sizes(x, grad))
    return rearrange(sums.sum(0), "h w o -> o 1 h w").contiguous()


def _sizes(x: Tensor, result: Tensor) -> tuple[int, ...]:
    return (len(x), result.shape[1], *x.shape[2:], *result.shape[2:])


def _empty_result(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    side = geometry(x, weight, stride, padding).output
    return x.new_empty(len(x), *side, len(weight)).permute(0, 3, 1, 2)


CONVOLUTION = define(
    "one_channel(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    convolution,
    _empty_result,
)
WEIGHT_GRADIENT = define(
    "one_channel_weight_gradient(Tensor grad, Tensor x, int[] kernel, int[] stride, int[] padding) "
    "-> Tensor",
    weight_gradient,
    lambda grad, x, kernel, *how: x.new_empty(grad.shape[1], 1, *kernel),
)
