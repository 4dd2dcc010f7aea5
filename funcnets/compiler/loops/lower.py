"""Element-wise fusion: regions of element-wise operations become loops in C++.

Operations between convolutions, matrix products and pools are bound by memory bandwidth, so each
pass over a feature map that is saved is time saved; small ones are bound by the overhead of calls,
so small regions that can run at one place share a call. All loops of a graph are compiled as one
library; equal loops, as those of repeated blocks, are one function for all sizes. In bfloat16 each
operation is computed in float32 and rounded, as if it stood alone. Without a compiler the graph
stays as it is.
"""

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import fx

from funcnets.compiler.graph.aliasing import memory
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.kernels import build
from funcnets.compiler.loops.call import Loop, plan
from funcnets.compiler.loops.codegen import HEADER, MAX_DEPTH, source
from funcnets.compiler.loops.grouping import Region, find_regions, unviewed

LOOP = "loop"  # name of the fusion in explanations
MAX_GROUPED_SIZE = 1 << 16  # elements up to which a region shares a call with others


def fuse_loops(compilation: Compilation) -> bool:
    """Replace regions of element-wise operations by calls of loops in C++, noted as `source`.

    The graph stays as it is where nothing can be fused, or there is no compiler.
    """
    names: dict[str, str] = {}  # of functions, by their source
    groups = group_regions(compilation)
    fused = {node for group in groups for region in group for node in region.nodes}
    plans = [
        [
            plan(region, names.setdefault(source(region), f"loop{len(names)}"), fused)
            for region in group
        ]
        for group in groups
    ]
    code = _library_source(names)
    library = build.load(code, build.ROUND_EACH) if groups else None
    if library is None:
        for node in fused:
            compilation.on_refusal(LOOP, node, "there is no C++ compiler")
        return False
    for i, (group, each) in enumerate(zip(groups, plans, strict=True)):
        compilation.module.add_submodule(f"loop{i}", Loop(each, library))
        _replace(compilation.graph, group, f"loop{i}")
    compilation.source = code
    return True


def _library_source(names: dict[str, str]) -> str:
    functions = [text.replace("NAME", name) for text, name in names.items()]
    depth = f"constexpr long MAX_DEPTH = {MAX_DEPTH};"
    return "\n".join([build.NUMBERS, depth, HEADER, *functions])


def group_regions(compilation: Compilation) -> list[list[Region]]:
    """Return the regions of each call: small ones at either end of the graph share one.

    Regions that depend on arguments of the graph alone can all run at its beginning, and those
    that only its output reads at its end. A single operation is left to ATen, unless it is in
    such a group.
    """
    overwritten = compilation.analysis(memory).overwritten
    at_begin: list[Region] = []
    at_end: list[Region] = []
    alone: list[list[Region]] = []
    for region in find_regions(compilation):
        if not region.size or len(region.nest) > MAX_DEPTH:
            reason = "it has no elements" if not region.size else f"more than {MAX_DEPTH} loops"
            _refuse(compilation, region, reason)
            continue
        is_small = region.size <= MAX_GROUPED_SIZE
        if is_small and _reads_arguments_only(region):
            at_begin.append(region)
        elif is_small and region.is_last and overwritten.isdisjoint(region.operands):
            at_end.append(region)
        elif len(region.nodes) > 1:
            alone.append([region])
        else:
            _refuse(compilation, region, "no element-wise operation of its shape is beside it")
    for shared in (at_begin, at_end):
        if sum(len(region.nodes) for region in shared) == 1:
            _refuse(compilation, shared.pop(), "no small operations that could share its call")
    return [group for group in (at_begin, *alone, at_end) if group]


def _refuse(compilation: Compilation, region: Region, reason: str) -> None:
    """Tell why the operations of a region are left to ATen."""
    for node in region.nodes:
        compilation.on_refusal(LOOP, node, reason)


def _reads_arguments_only(region: Region) -> bool:
    return all(unviewed(operand).op == "placeholder" for operand in region.operands)


def _replace(graph: fx.Graph, group: Sequence[Region], name: str) -> None:
    """Replace regions by a call of the loop `name`."""
    operands = [list(map(unviewed, region.operands)) for region in group]
    results = [node for region in group for node in region.results]
    with graph.inserting_before(_position(graph, group)):
        targets = [[None] * len(region.results) for region in group]
        call = graph.call_module(name, (operands, targets))
        call.meta["val"] = [node.meta["val"] for node in results]
        if origins := _origins(group):
            call.meta["origins"] = origins
        inside = {node for region in group for node in region.nodes}
        for i, node in enumerate(results):
            part = graph.call_function(operator.getitem, (call, i))
            part.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in inside)
    for region in group:
        for node in reversed(region.nodes):
            graph.erase_node(node)


def _origins(group: Sequence[Region]) -> Counter[Any]:
    """Return how many elements each origin has in a group, if whoever recorded it noted them."""
    origins: Counter[Any] = Counter()
    for region in group:
        for node in region.nodes:
            if "origin" in node.meta:
                origins[node.meta["origin"]] += region.size
    return origins


def _position(graph: fx.Graph, group: Sequence[Region]) -> fx.Node:
    """Return the node before which a group can run: after its operands, before its readers."""
    if len(group) == 1:
        return group[0].nodes[-1]
    is_at_begin = all(map(_reads_arguments_only, group))
    position: fx.Node = next(
        node
        for node in graph.nodes
        if node.op == "output" or (is_at_begin and node.op != "placeholder")
    )
    return position
