"""Loops: runs of operations element by element become one pass each, in C++ for the whole graph.

What lies between convolutions, matrix products and pools is bound by memory, so each pass that is
saved is time saved; what is small is bound by the calls, so small runs that can stand at one place
are one call.  All loops of a graph are compiled at once; equal ones, as those of repeated blocks,
are one function, whatever their sizes.  In bfloat16 each operation is computed in float32 and
rounded, as if it stood alone.  Without a compiler the graph stays as it is.
"""

import operator
from collections.abc import Sequence

from torch import fx

from funcnets.compiler.graph.aliasing import memory
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.kernels import build
from funcnets.compiler.loops.call import Loop, plan
from funcnets.compiler.loops.codegen import DEPTH, HEADER, source
from funcnets.compiler.loops.grouping import Run, runs, whole

LARGEST_IN_GROUP = 1 << 16  # numbers of a run that can be one of many in a call


def fuse_loops(compilation: Compilation) -> bool:
    """Replace groups of element-wise operations by calls of loops in C++, noted as `source`.

    The graph stays as it is where nothing can be fused, or there is no compiler.
    """
    names: dict[str, str] = {}  # of functions, by their sources
    found = groups(compilation)
    made = {node for group in found for run in group for node in run.nodes}
    plans = [
        [plan(run, names.setdefault(source(run), f"loop{len(names)}"), made) for run in group]
        for group in found
    ]
    code = "\n".join(
        [
            build.NUMBERS,
            f"constexpr long DEPTH = {DEPTH};",
            HEADER,
            *(text.replace("NAME", name) for text, name in names.items()),
        ]
    )
    library = build.load(code) if found else None
    if library is None:
        return False
    for i, (group, each) in enumerate(zip(found, plans, strict=True)):
        compilation.module.add_submodule(f"loop{i}", Loop(each, library))
        _replace(compilation.graph, group, f"loop{i}")
    compilation.source = code
    return True


def groups(compilation: Compilation) -> list[list[Run]]:
    """Return runs that are called together: small ones at the ends of the graph, others alone.

    What is made of arguments alone can all be made at the beginning, and what only the caller reads
    at the end.  A single operation is left to ATen, unless it is in such a group.
    """
    overwritten = compilation.analysis(memory).overwritten
    first: list[Run] = []
    last: list[Run] = []
    alone: list[list[Run]] = []
    for run in runs(compilation):
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
