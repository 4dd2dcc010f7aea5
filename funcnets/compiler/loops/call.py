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
from funcnets.compiler.loops.codegen import DEPTH, LONGEST
from funcnets.compiler.loops.grouping import Run, whole


class Layout(NamedTuple):
    """What memory a value takes."""

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        """New memory."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


class Plan(NamedTuple):
    """What the loop of one run takes and gives, and how it walks over that."""

    function: str  # its name in the library
    operands: list[Layout | None]  # as they must be; None where nothing else can come
    results: list[Layout]
    size: list[int]  # of each of the `DEPTH` loops
    strides: list[int]  # of each loop, operand by operand, then of the results


def plan(run: Run, function: str, made: set[fx.Node]) -> Plan:
    """The plan of a run, which the C++ `function` is for; loops are what gives `made`."""
    operands, results, nest = [whole(node) for node in run.operands], run.results, run.nest
    outer = [(1, (0,) * (len(operands) + len(results)))] * (DEPTH - len(nest))
    size, steps = zip(*outer, *nest, strict=True)
    return Plan(
        function,
        [None if node in made or is_exact(node) else _layout(node) for node in operands],
        [_layout(node) for node in results],
        list(size),
        [step for each in zip(*steps, strict=True) for step in each],
    )


def _layout(node: fx.Node) -> Layout:
    x = node.meta["val"]
    return Layout(x.shape, x.stride(), x.dtype, x.device)


class _Part(ctypes.Structure):
    """`Part` in C++."""

    _fields_ = (("function", ctypes.c_void_p), ("first", ctypes.c_long))


class _Call(ctypes.Structure):
    """`Call` in C++."""

    _fields_ = (
        *(("parts", ctypes.POINTER(_Part)), ("count", ctypes.c_long), ("many", ctypes.c_bool)),
        *((name, ctypes.POINTER(ctypes.c_long)) for name in ("places", "size", "stride")),
    )


class Loop(torch.nn.Module):
    """Runs of operations as one function of their operands, by their C++ in `library`."""

    def __init__(self, plans: Sequence[Plan], library: ctypes.CDLL) -> None:
        super().__init__()
        self.plans = plans
        operands = [layout for plan in plans for layout in plan.operands]
        results = [layout for plan in plans for layout in plan.results]
        self.unsure = [(i, layout) for i, layout in enumerate(operands) if layout is not None]
        self.empty = [layout.empty for layout in results]
        self.pointers = ctypes.c_void_p * (len(operands) + len(results))
        self.function: Callable[..., None] = library["call"]
        self.call = ctypes.byref(self._call(library))

    def _call(self, library: ctypes.CDLL) -> _Call:
        """All that is the same each time."""
        counts = [len(plan.operands) + len(plan.results) for plan in self.plans]
        addresses = [ctypes.cast(library[plan.function], ctypes.c_void_p) for plan in self.plans]
        parts = map(_Part, [*addresses, None], accumulate(counts, initial=0))  # and the end
        many = sum(math.prod(plan.size) for plan in self.plans) > LONGEST
        numbers = (
            self._places(),
            [n for plan in self.plans for n in plan.size],
            [n for plan in self.plans for n in plan.strides],
        )
        array = (_Part * (len(counts) + 1))(*parts)
        return _Call(array, len(counts), many, *(build.longs(*each) for each in numbers))

    def _places(self) -> list[int]:
        """Where the operands and results of each run are, among the operands and results of all."""
        places: list[int] = []
        operands, results = 0, sum(len(plan.operands) for plan in self.plans)
        for plan in self.plans:
            places += range(operands, operands := operands + len(plan.operands))
            places += range(results, results := results + len(plan.results))
        return places

    def __call__(  # past the hooks of a module, for which small loops have no time
        self, operands: list[list[Tensor]], targets: list[list[Tensor | None]]
    ) -> list[Tensor]:
        """The results, each in its target, or in new memory where that is None."""
        given = [x for each in operands for x in each]
        wanted = [x for each in targets for x in each]
        for i, layout in self.unsure:
            if given[i].stride() != layout.stride:
                # Neither read nor written in its own strides.
                wanted = [None if x is given[i] else x for x in wanted]
                given[i] = layout.empty().copy_(given[i])
        results = [empty() if x is None else x for x, empty in zip(wanted, self.empty, strict=True)]
        self.function(self.call, self.pointers(*[x.data_ptr() for x in (*given, *results)]))
        return results
