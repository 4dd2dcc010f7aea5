"""Convolutions on maps of a few pixels, as matrix products.

There most of a kernel's taps fall on the padding, and oneDNN's weight gradients are slow.  The
convolution is one dense matrix product over (channel, pixel) instead, which leaves those taps out:
at 1×1 a 3×3 kernel is its centre alone, 9 times less work; at 2×2, 2.25 times less.  There the
matrix is 16/9 of the kernel's size, and making it pays for large batches alone (512→512, one core,
milliseconds against oneDNN's: 23 and 15 at batch 8, 36 and 65 at batch 64, 81 and 250 at 256).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.lowerings.table import Lowering

aten = torch.ops.aten


def both_ways(
    name: str,
    applies: Callable[..., bool],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
) -> tuple[Lowering, Lowering]:
    """Lowerings of a convolution and of its derivative, `name` with `forward` and `backward`.

    `applies` is the rule of both, of the input, the weight, and how they are convolved.  Where they
    don't fit together it isn't asked, and ATen says what is wrong.
    """
    return (
        Lowering(
            f"{name}forward",
            aten.convolution.default,
            lambda x, weight, bias, *how: fits(x, weight, bias, *how) and applies(x, weight, *how),
            forward,
        ),
        Lowering(
            f"{name}backward",
            aten.convolution_backward.default,
            lambda grad, x, weight, bias_sizes, *how: (
                fits(x, weight, None, *how[:-1]) and applies(x, weight, *how[:-1])
            ),
            backward,
        ),
    )


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> bool:
    """Whether they are the operands of a convolution of images that can be computed."""
    stride, padding, dilation, transposed, _, groups = how
    lengths = {len(each) for each in (stride, padding, dilation)}
    if transposed or not x.ndim == weight.ndim == 4 or lengths != {2}:
        return False
    sides = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    return (
        x.shape[1] == weight.shape[1] * groups
        and x.dtype is weight.dtype
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype is x.dtype))
        and min(weight.shape) > 0
        and all(p >= 0 and n + 2 * p > d * (k - 1) for n, k, p, d in sides)
    )


def is_plain_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> bool:
    """Whether it is a convolution of images, on the CPU, without groups or dilation."""
    usual = groups == 1 and not transposed and set(dilation) == {1}
    return usual and x.ndim == 4 and x.device.type == "cpu" and x.numel() > 0
