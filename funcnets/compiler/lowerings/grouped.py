"""Grouped convolutions, which `vmap` makes of a convolution whose weights it maps over.

On feature maps of a few pixels they are split, as each group alone can be a matrix product. On
larger maps they stay: oneDNN takes up to twice as long for groups whose channels don't fill its
vectors (6 to 16, say), but in a compiled step splitting and concatenating costs more than it saves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.lowerings import dense
from funcnets.compiler.lowerings.convolution import Gradients, both_directions

MAX_GROUPS = 64  # each is an operation of its own in the graph

aten = torch.ops.aten


def is_faster(x: Tensor, weight: Tensor, *how: Any) -> bool:
    """True if there are a few groups, with maps of so few pixels that products are faster.

    Depthwise convolutions, with one input channel a group, stay: oneDNN has kernels for them.
    """
    *rest, groups = how
    if weight.shape[1] == 1 or not 1 < groups <= MAX_GROUPS:
        return False
    return dense.is_faster(x, weight, *rest, 1)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """Return `aten.convolution`, as a convolution for each group."""
    *rest, groups = how
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    return torch.cat([aten.convolution(*part, *rest, 1) for part in parts], 1)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *how: Any
) -> Gradients:
    """Return `aten.convolution_backward`, by each group alone.

    The last argument is the mask of gradients that are wanted: of input, weight and bias.
    """
    *rest, groups, mask = how
    sizes = None if bias_sizes is None else [size // groups for size in bias_sizes]
    parts = zip(grad.chunk(groups, 1), x.chunk(groups, 1), weight.chunk(groups), strict=True)
    grads = [aten.convolution_backward(*part, sizes, *rest, 1, mask) for part in parts]
    pieces = list(zip(*grads, strict=True))
    grad_x, grad_weight, grad_bias = (
        torch.cat(pieces[i], axis) if mask[i] else None for i, axis in enumerate((1, 0, 0))
    )
    return grad_x, grad_weight, grad_bias


FORWARD, BACKWARD = both_directions("grouped", is_faster, forward, backward)
