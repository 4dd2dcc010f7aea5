"""Loops: runs of operations element by element become one pass each, in C++ for the whole graph.

What lies between convolutions, matrix products and pools is bound by memory, so each pass that is
saved is time saved; what is small is bound by the calls, so small runs that can stand at one place
are one call.  All loops of a graph are compiled at once; equal ones, as those of repeated blocks,
are one function, whatever their sizes.  In bfloat16 each operation is computed in float32 and
rounded, as if it stood alone.  Without a compiler the graph stays as it is.
"""

import ctypes
import math
import operator
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, fx

from funcnets.jit import native
from funcnets.jit.expressions import EXACT, expression
from funcnets.jit.memory import changed, is_exact
from funcnets.jit.native import COMPUTED, STORED
from funcnets.jit.runs import Run, flatten_lines, repeat_conversions, runs, whole

DEPTH = 4  # loops in each other, in the template
CHUNK = 1 << 12  # numbers that one thread takes at a time
LONGEST = 1 << 15  # numbers that one thread takes alone
LARGEST_IN_GROUP = 1 << 16  # numbers of a run that can be one of many in a call

HEADER = Path(__file__).with_name("loops.hpp").read_text()
TEMPLATE = """
extern "C" void NAME(void** at, const long* size, const long* stride) {{
    const long rows = size[3] < {chunk} ? {chunk} / size[3] : 1;
    const bool many = size[0] * size[1] * size[2] * size[3] > {longest};
#pragma omp parallel for collapse(4) if (many)
    for (long a = 0; a < size[0]; ++a)
    for (long b = 0; b < size[1]; ++b)
    for (long row = 0; row < size[2]; row += rows)
    for (long first = 0; first < size[3]; first += {chunk})
        for (long c = row; c < min(row + rows, size[2]); ++c) {{
            const long last = min<long>(first + {chunk}, size[3]);
            {pointers}
#pragma omp simd
            for (long i = first; i < last; ++i) {{
                {body}
            }}
        }}
}}
"""
POINTER = (
    "{0}* p{1} = ({0}*) at[{1}] + a * stride[{2}] + b * stride[{2} + 1] + c * stride[{2} + 2];"
)


def fuse_loops(graph: fx.GraphModule) -> str:
    """Make loops of `graph`, which must have come from `trace`; gives the C++ of them all.

    Without a compiler, or anything to make loops of, the graph stays, and there is no C++.
    """
    if not native.is_available():
        return ""
    prepare(graph.graph)
    names: dict[str, str] = {}  # of functions, by their sources
    found = groups(graph.graph)
    made = {node for group in found for run in group for node in run.nodes}
    plans = [
        [plan(run, names.setdefault(source(run), f"loop{len(names)}"), made) for run in group]
        for group in found
    ]
    code = "\n".join(
        [
            native.NUMBERS,
            f"constexpr long DEPTH = {DEPTH};",
            HEADER,
            *(text.replace("NAME", name) for text, name in names.items()),
        ]
    )
    library = native.load(code) if found else None
    if library is None:
        return ""
    for i, (group, each) in enumerate(zip(found, plans, strict=True)):
        graph.add_submodule(f"loop{i}", Loop(each, library))
        _replace(graph.graph, group, f"loop{i}")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return code


def prepare(graph: fx.Graph) -> None:
    """Rewrite what would keep apart in `graph` what can be one loop."""
    repeat_conversions(graph)
    flatten_lines(graph)


def is_loop(node: fx.Node) -> bool:
    """Whether the node, of a graph, calls a loop: with its operands and where to write."""
    return node.op == "call_module"


def groups(graph: fx.Graph) -> list[list[Run]]:
    """Runs that are called together: small ones at the ends of the graph, others each for itself.

    What is made of arguments alone can all be made at the beginning, and what only the caller reads
    at the end.  A single operation is left to ATen, unless it is in such a group.
    """
    overwritten = changed(graph)
    first: list[Run] = []
    last: list[Run] = []
    alone: list[list[Run]] = []
    for run in runs(graph):
        if not run.size or len(run.nest) > DEPTH:
            continue
        is_small = run.size <= LARGEST_IN_GROUP
        if is_small and _is_first(run):
            first.append(run)
        elif is_small and run.is_last and overwritten.isdisjoint(run.operands):
            last.append(run)
        elif len(run.nodes) > 1:
            alone.append([run])
    return [group for group in (first, *alone, last) if sum(len(run.nodes) for run in group) > 1]


def _is_first(run: Run) -> bool:
    """Whether arguments of the graph are all that it reads."""
    return all(whole(operand).op == "placeholder" for operand in run.operands)


def _replace(graph: fx.Graph, group: Sequence[Run], name: str) -> None:
    """Let the loop of this name do what the runs do."""
    operands = [list(map(whole, run.operands)) for run in group]
    results = [node for run in group for node in run.results]
    with graph.inserting_before(_place(graph, group)):
        call = graph.call_module(name, (operands, [[None] * len(run.results) for run in group]))
        call.meta["val"] = [node.meta["val"] for node in results]
        inside = {node for run in group for node in run.nodes}
        for i, node in enumerate(results):
            part = graph.call_function(operator.getitem, (call, i))
            part.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in inside)
    for run in group:
        for node in reversed(run.nodes):
            graph.erase_node(node)


def _place(graph: fx.Graph, group: Sequence[Run]) -> fx.Node:
    """The node before which a group can stand: after its operands, and before those who read it."""
    if len(group) == 1:
        return group[0].nodes[-1]
    if all(map(_is_first, group)):
        return next(node for node in graph.nodes if node.op != "placeholder")
    return next(iter(graph.find_nodes(op="output")))


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
        return _Call(array, len(counts), many, *(native.longs(*each) for each in numbers))

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


def source(run: Run) -> str:
    """C++ of a run, as the function NAME: the same for runs that walk alike, whatever the sizes."""
    operands, results, nest = run.operands, run.results, run.nest
    steps = nest[-1][1] if nest else (0,) * (len(operands) + len(results))

    def element(i: int) -> str:
        return f"p{i}[{ {0: '0', 1: 'i'}.get(steps[i], f'i * stride[{DEPTH * i + DEPTH - 1}]') }]"

    types = [STORED[node.meta["val"].dtype] for node in (*operands, *results)]
    names: dict[fx.Node, str] = {}
    lines: list[str] = []

    def note(node: fx.Node, value: str) -> None:
        names[node] = f"v{len(lines)}"
        lines.append(f"const {COMPUTED[node.meta['val'].dtype]} {names[node]} = {value};")

    for i, node in enumerate(operands):
        note(node, f"computed({element(i)})")
    for node in run.nodes:
        value, to = expression(node, names), STORED[node.meta["val"].dtype]
        note(node, value if node.target in EXACT else f"rounded<{to}>({value})")
    for i, node in enumerate(results, len(operands)):
        lines.append(f"{element(i)} = kept<{types[i]}>({names[node]});")
    pointers = [POINTER.format(each, i, DEPTH * i) for i, each in enumerate(types)]
    return TEMPLATE.format(
        chunk=CHUNK, longest=LONGEST, pointers=" ".join(pointers), body=" ".join(lines)
    )
