"""Calls of compiled element-wise loops from a graph."""

import ctypes
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import is_exact
from funcnets.compiler.kernels import build
from funcnets.compiler.loops.codegen import MAX_DEPTH, MAX_SERIAL_SIZE
from funcnets.compiler.loops.grouping import Region, unviewed


class Layout(NamedTuple):
    """Shape, strides, dtype and device of a tensor."""

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        """Return new memory of this layout."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


class Plan(NamedTuple):
    """Operands and results of one loop, and how it steps through them."""

    function: str  # its name in the library
    operands: list[Layout | None]  # expected layouts; None where no other can occur
    results: list[Layout]
    size: list[int]  # of each of the `MAX_DEPTH` nested loops
    strides: list[int]  # in each nested loop, operand by operand, then of the results


def plan(region: Region, function: str, fused: set[fx.Node]) -> Plan:
    """Return the plan of a region for the C++ `function`; `fused` are the nodes of all regions."""
    operands, results, nest = list(map(unviewed, region.operands)), region.results, region.nest
    outer = [(1, (0,) * (len(operands) + len(results)))] * (MAX_DEPTH - len(nest))
    size, steps = zip(*outer, *nest, strict=True)
    return Plan(
        function,
        [None if node in fused or is_exact(node) else _layout(node) for node in operands],
        [_layout(node) for node in results],
        list(size),
        [step for each in zip(*steps, strict=True) for step in each],
    )


def _layout(node: fx.Node) -> Layout:
    x = node.meta["val"]
    return Layout(x.shape, x.stride(), x.dtype, x.device)


class _Loop(ctypes.Structure):
    """`Loop` in C++."""

    _fields_ = (("function", ctypes.c_void_p), ("first", ctypes.c_long))


class _LoopGroup(ctypes.Structure):
    """`LoopGroup` in C++."""

    _fields_ = (
        ("loops", ctypes.POINTER(_Loop)),
        ("count", ctypes.c_long),
        ("is_large", ctypes.c_bool),
        *((name, ctypes.POINTER(ctypes.c_long)) for name in ("indices", "size", "stride")),
    )


class Loop(torch.nn.Module):
    """Loops that run in one call of the C++ `library`, as a function of their operands."""

    def __init__(self, plans: Sequence[Plan], library: ctypes.CDLL) -> None:
        super().__init__()
        self.plans = plans
        operands = [layout for plan in plans for layout in plan.operands]
        results = [layout for plan in plans for layout in plan.results]
        self.unsure = [(i, layout) for i, layout in enumerate(operands) if layout is not None]
        self.empty = [layout.empty for layout in results]
        self.pointers = ctypes.c_void_p * (len(operands) + len(results))
        self.function: Callable[..., None] = library["run_loops"]
        self.group = ctypes.byref(self._group(library))

    def _group(self, library: ctypes.CDLL) -> _LoopGroup:
        """Return the arguments that are the same in each call."""
        counts = [len(plan.operands) + len(plan.results) for plan in self.plans]
        addresses = [ctypes.cast(library[plan.function], ctypes.c_void_p) for plan in self.plans]
        loops = map(_Loop, [*addresses, None], accumulate(counts, initial=0))  # and the end
        is_large = sum(math.prod(plan.size) for plan in self.plans) > MAX_SERIAL_SIZE
        numbers = (
            self._indices(),
            [n for plan in self.plans for n in plan.size],
            [n for plan in self.plans for n in plan.strides],
        )
        array = (_Loop * (len(counts) + 1))(*loops)
        return _LoopGroup(array, len(counts), is_large, *(build.longs(*each) for each in numbers))

    def _indices(self) -> list[int]:
        """Return the positions of each loop's pointers among all operands, then all results."""
        indices: list[int] = []
        operands, results = 0, sum(len(plan.operands) for plan in self.plans)
        for plan in self.plans:
            indices += range(operands, operands := operands + len(plan.operands))
            indices += range(results, results := results + len(plan.results))
        return indices

    def __call__(  # without a module's hooks, which would take longer than a small loop
        self, operands: list[list[Tensor]], targets: list[list[Tensor | None]]
    ) -> list[Tensor]:
        """Return the results, each written to its target, or to new memory where that is None."""
        given = [x for each in operands for x in each]
        wanted = [x for each in targets for x in each]
        for i, layout in self.unsure:
            if given[i].stride() != layout.stride:
                # With other strides it can be neither read directly nor overwritten.
                wanted = [None if x is given[i] else x for x in wanted]
                given[i] = layout.empty().copy_(given[i])
        results = [empty() if x is None else x for x, empty in zip(wanted, self.empty, strict=True)]
        self.function(self.group, self.pointers(*[x.data_ptr() for x in (*given, *results)]))
        return results
