"""Grouped convolutions, which is what `vmap` makes of a convolution whose weights it maps over.

On tiny maps they are taken apart, as each group by itself is lowered on to a matrix product.  On
larger ones they stay: oneDNN takes up to twice as long for groups whose channels don't fill its
vectors (6 to 16, say), but in a compiled step taking apart and joining costs more than it saves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.lowerings.convolution import both_ways
from funcnets.compiler.lowerings.dense import is_tiny

MOST_GROUPS = 64  # each is an operation of its own in the graph

aten = torch.ops.aten


def is_faster_split(x: Tensor, weight: Tensor, *how: Any) -> bool:
    """Whether a convolution of these arguments is done faster as one convolution a group.

    Not with one input channel a group (depthwise), for which oneDNN has kernels of its own.
    """
    *alone, groups = how
    if weight.shape[1] == 1 or not 1 < groups <= MOST_GROUPS:
        return False
    return is_tiny(x, weight, *alone, 1)


def split_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """`aten.convolution` of several groups, each a convolution of its own."""
    *alone, groups = how
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    return torch.cat([aten.convolution(*part, *alone, 1) for part in parts], 1)


def split_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, *how: Any
) -> tuple[Tensor | None, ...]:
    """`aten.convolution_backward` of several groups, each by itself.

    The last argument is the mask of what is wanted: gradients of input, weight and bias.
    """
    *alone, groups, mask = how
    sizes = None if bias_sizes is None else [size // groups for size in bias_sizes]
    parts = zip(grad.chunk(groups, 1), x.chunk(groups, 1), weight.chunk(groups), strict=True)
    grads = [aten.convolution_backward(*part, sizes, *alone, 1, mask) for part in parts]
    return tuple(
        torch.cat(pieces, axis) if wanted else None
        for pieces, axis, wanted in zip(zip(*grads, strict=True), (1, 0, 0), mask, strict=True)
    )


SPLIT_FORWARD, SPLIT_BACKWARD = both_ways(
    "grouped.split_", is_faster_split, split_forward, split_backward
)
