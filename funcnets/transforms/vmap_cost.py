"""How much of a function's work is in convolutions of several groups, read off its shapes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from funcnets import tree
from funcnets.compiler.lowerings.grouped import is_faster_split
from funcnets.compiler.trace import explained


class Work(NamedTuple):
    """What a function does in one run."""

    operations: int
    multiply_adds: int  # of its convolutions of several groups, forward


class _Counter(TorchDispatchMode):
    """Counts the operations that run inside it."""

    operations = multiply_adds = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.operations += 1
        if operation is torch.ops.aten.convolution.default:
            x, weight, _, *how = args
            if how[-1] > 1 and not is_faster_split(x, weight, *how):
                self.multiply_adds += result.numel() * math.prod(weight.shape[1:])
        return result


def work(function: Callable[..., Any], *arguments: Any) -> Work:
    """What `function` does for arguments of these shapes; nothing is computed.

    Convolutions that a lowering takes apart, group by group, don't count as grouped.
    Raises TraceError where the function branches on a tensor's value.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shapes = tree.map(
        lambda leaf: mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, arguments
    )
    counter = _Counter()
    with explained(), mode, counter:
        function(*shapes)
    return Work(counter.operations, counter.multiply_adds)
