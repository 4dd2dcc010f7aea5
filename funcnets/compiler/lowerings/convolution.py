"""Common parts of the lowerings of convolutions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.lowerings.table import Lowering

aten = torch.ops.aten

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, weight and bias


def both_directions(
    name: str,
    applies: Callable[..., bool],
    forward: Callable[..., Tensor],
    backward: Callable[..., Gradients],
    prepare: Callable[..., object] = lambda x, weight, *how: None,
) -> tuple[Lowering, Lowering]:
    """Return lowerings `name.forward` and `name.backward` of a convolution and its derivative.

    `applies` and `prepare` take the input, the weight, and the rest of a convolution's arguments
    after its bias. Neither is called for operands that don't fit together: ATen raises the error.
    """

    @functools.wraps(applies)
    def applies_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> bool:
        return is_valid(x, weight, bias, *how) and applies(x, weight, *how)

    @functools.wraps(applies)
    def applies_backward(
        grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *how: Any
    ) -> bool:
        return is_valid(x, weight, None, *how[:-1]) and applies(x, weight, *how[:-1])

    return (
        Lowering(
            f"{name}.forward",
            aten.convolution.default,
            applies_forward,
            forward,
            lambda x, weight, bias, *how: prepare(x, weight, *how),
        ),
        Lowering(
            f"{name}.backward",
            aten.convolution_backward.default,
            applies_backward,
            backward,
            lambda grad, x, weight, bias_sizes, *how: prepare(x, weight, *how[:-1]),
        ),
    )


def is_valid(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> bool:
    """True if the arguments are those of a 2D convolution that ATen can compute."""
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
    """True if it is a 2D convolution on the CPU, without groups, dilation or transposition."""
    is_plain = groups == 1 and not transposed and set(dilation) == {1}
    return is_plain and x.ndim == 4 and x.device.type == "cpu" and x.numel() > 0
