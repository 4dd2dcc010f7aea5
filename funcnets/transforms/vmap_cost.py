"""Cost of a function under `vmap`: its operations, and multiply-adds in grouped convolutions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import _torch, tree
from funcnets._torch import DispatchMode
from funcnets.compiler.lowerings import grouped
from funcnets.compiler.trace import explained


class Cost(NamedTuple):
    """Cost of one call of a function."""

    operations: int
    multiply_adds: int  # in grouped convolutions, forward


class _Counter(DispatchMode):
    """Mode that counts the operations that run inside it."""

    operations = multiply_adds = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.operations += 1
        if operation is torch.ops.aten.convolution.default:
            x, weight, _, *options = args
            if options[-1] > 1 and not grouped.is_faster(x, weight, *options):
                self.multiply_adds += result.numel() * math.prod(weight.shape[1:])
        return result


def count_cost(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Return the cost of `function` for arguments of these shapes, without computing it.

    Grouped convolutions that a lowering of `jit` splits into one convolution for each group are
    left out of `multiply_adds`.

    Raises TraceError if the function branches on the value of a tensor.
    """
    mode = _torch.FakeTensorMode(allow_non_fake_inputs=True)
    shapes = tree.map(
        lambda leaf: mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, arguments
    )
    counter = _Counter()
    with explained(), mode, counter:
        function(*shapes)
    return Cost(counter.operations, counter.multiply_adds)
