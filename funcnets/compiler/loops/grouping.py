"""Runs: which operations of a graph can be one pass over a map, and what brings them together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import memory, viewed
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.edit import emit
from funcnets.compiler.loops.expressions import element_wise

aten = torch.ops.aten


class Run:
    """Operations on maps of one shape that can be one loop, where the last of them stands.

    What they take is read off the graph each time, as other runs in it may have become loops.
    """

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.nodes = tuple(nodes)

    def split(self, values: Sequence[fx.Node]) -> tuple["Run", "Run"]:
        """The operations that `values` are made of, and the others."""
        needed = set(values)
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        parts = ([node for node in self.nodes if (node in needed) is of] for of in (True, False))
        return Run(next(parts)), Run(next(parts))

    @property
    def operands(self) -> list[fx.Node]:
        """What they take from elsewhere, each once."""
        inside = set(self.nodes)
        taken = dict.fromkeys(x for node in self.nodes for x in node.all_input_nodes)
        return [operand for operand in taken if operand not in inside]

    @property
    def results(self) -> list[fx.Node]:
        """Those that are read elsewhere."""
        inside = set(self.nodes)
        return [node for node in self.nodes if not inside.issuperset(node.users)]

    @property
    def size(self) -> int:
        """How many numbers each operation gives."""
        return _value(self.nodes[-1]).numel()

    @property
    def is_last(self) -> bool:
        """Whether nothing but the caller reads its results."""
        return all(user.op == "output" for node in self.results for user in node.users)

    @property
    def nest(self) -> list[tuple[int, tuple[int, ...]]]:
        """Its loops, and the steps of operands and results in them, as `nest` gives them."""
        values = [_value(node) for node in (*self.operands, *self.results)]
        return nest(values[-1], values)


def runs(compilation: Compilation) -> list[Run]:
    """Find runs of operations, in order; many are of one alone.

    Where something else reads a value of a run, what it is made of ends there, so that it can stand
    there as a whole.  The rest goes on, so that a later loop can compute it for itself; it moves to
    that place in the graph.
    """
    writers, fusible = compilation.analysis(memory).writers, compilation.analysis(element_wise)
    begun: dict[fx.Node, Run] = {}  # runs that can go on, by their nodes
    found: dict[Run, None] = {}

    def begin(run: Run) -> None:
        begun.update(dict.fromkeys(run.nodes, run))
        found[run] = None

    for node in compilation.graph.nodes:
        if node in writers:
            begun.clear()  # what stands before this must be read before it
        read = [operand for operand in node.all_input_nodes if operand in begun]
        fitting = [x for x in read if node in fusible and _shape(x) == _shape(node)]
        joined = dict.fromkeys(begun[operand] for operand in fitting)
        for run in dict.fromkeys(begun[operand] for operand in read):
            if run in joined:
                continue
            needed, rest = run.split(read)
            for member in run.nodes:
                del begun[member]
            del found[run]
            found[needed] = None
            if rest.nodes:
                begin(rest)
            for member in rest.nodes:  # nothing has read them yet, and they may read `needed`
                node.prepend(member)
        if node in fusible:
            for run in joined:
                del found[run]
            begin(Run([member for run in joined for member in run.nodes] + [node]))
    return list(found)


def repeat_conversions(compilation: Compilation) -> bool:
    """Convert a bfloat16 feature map in each operation that reads it, so loops read bfloat16."""
    graph, overwritten = compilation.graph, compilation.analysis(memory).overwritten
    fusible = compilation.analysis(element_wise)
    is_changed = False
    for node in list(graph.nodes):
        if node.target is not aten._to_copy.default or node not in fusible:
            continue
        if not overwritten.isdisjoint((node, *node.all_input_nodes)):
            continue
        types = [_value(x).dtype for x in (*node.all_input_nodes, node)]
        if types == [torch.bfloat16, torch.float32]:
            for user in list(node.users):
                if user in fusible and _shape(user) == _shape(node):
                    with graph.inserting_before(user):
                        user.replace_input_with(node, graph.node_copy(node))
                    is_changed = True
    return is_changed


def flatten_vectors(compilation: Compilation) -> bool:
    """Compute operations on vectors, one number for each channel, without dimensions of size 1.

    What reads the result in another shape reads a view of it.  So no view stands between operations
    that can be one loop.
    """
    graph, fusible = compilation.graph, compilation.analysis(element_wise)
    is_changed = False
    for node in list(graph.nodes):
        operands = node.all_input_nodes
        usual = node in fusible and all(_is_line(x, node) for x in (*operands, node))
        if not usual or any(user.op == "output" for user in node.users):
            continue
        with graph.inserting_before(node):
            lines = {x: _line(x) for x in operands}
            arguments = (lines.get(x, x) if isinstance(x, fx.Node) else x for x in node.args)
            line = emit(graph, node.target, *arguments, **node.kwargs)
            is_flat = len(_shape(node)) == 1
            seen = line if is_flat else emit(graph, aten.view.default, line, _shape(node))
        node.replace_all_uses_with(seen)
        graph.erase_node(node)
        is_changed = True
    return is_changed


def _is_line(node: fx.Node, like: fx.Node) -> bool:
    """Whether it is numbers in a row, as many as `like` has."""
    value, length = _value(node), _value(like).numel()
    return value.is_contiguous() and value.numel() == length == max(value.shape, default=0)


def _line(node: fx.Node) -> fx.Node:
    """The numbers of a line as one dimension: what it is a view of, or a new view."""
    base: fx.Node | None = node
    while base is not None and _is_line(base, node):
        if len(_shape(base)) == 1:
            return base
        base = viewed(base)
    return emit(node.graph, aten.view.default, node, (_value(node).numel(),))


def whole(node: fx.Node) -> fx.Node:
    """The value that `node` is a view of, where that has the same numbers in the same order."""
    base, result = viewed(node), node
    while base is not None:
        if _walk(base) == _walk(node):
            result = base
        base = viewed(base)
    return result


def _walk(node: fx.Node) -> Any:
    """How one goes through a value in memory."""
    value = _value(node)
    sides = zip(value.shape, value.stride(), strict=True)
    return value.dtype, value.storage_offset(), [side for side in sides if side[0] != 1]


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _shape(node: fx.Node) -> Any:
    return _value(node).shape


def nest(result: Tensor, tensors: Sequence[Tensor]) -> list[tuple[int, tuple[int, ...]]]:
    """Loops over `result`, the innermost last: the size of each, and how far each tensor steps.

    Dimensions that all tensors walk through evenly are one loop.
    """
    strides = [_expanded_strides(tensor, result.ndim) for tensor in tensors]
    loops: list[tuple[int, tuple[int, ...]]] = []
    for d in sorted(range(result.ndim), key=result.stride, reverse=True):
        size, steps = result.shape[d], tuple(each[d] for each in strides)
        if size == 1:
            continue
        if loops and loops[-1][1] == tuple(size * step for step in steps):
            size *= loops.pop()[0]
        loops.append((size, steps))
    return loops


def _expanded_strides(tensor: Tensor, ndim: int) -> list[int]:
    """The strides of a tensor that is expanded to a larger shape, of `ndim` dimensions."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return [0] * (ndim - tensor.ndim) + [0 if size == 1 else stride for size, stride in sides]
