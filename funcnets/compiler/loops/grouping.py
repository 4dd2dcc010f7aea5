"""Regions of a graph that can be one loop each, and rewrites that make them larger."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import memory, viewed
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.edit import emit
from funcnets.compiler.loops.expressions import element_wise

aten = torch.ops.aten


class Region:
    """Element-wise operations on tensors of one shape that can be one loop, at the last of them.

    Operands and results are read from the graph at each access, as other regions of the graph may
    have become loops meanwhile.
    """

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.nodes = tuple(nodes)

    def split(self, values: Sequence[fx.Node]) -> tuple["Region", "Region"]:
        """Return the operations that `values` depend on, and the others."""
        needed = set(values)
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        parts = ([node for node in self.nodes if (node in needed) is of] for of in (True, False))
        return Region(next(parts)), Region(next(parts))

    @property
    def operands(self) -> list[fx.Node]:
        """Values from outside, each once."""
        inside = set(self.nodes)
        taken = dict.fromkeys(x for node in self.nodes for x in node.all_input_nodes)
        return [operand for operand in taken if operand not in inside]

    @property
    def results(self) -> list[fx.Node]:
        """Values that are read outside."""
        inside = set(self.nodes)
        return [node for node in self.nodes if not inside.issuperset(node.users)]

    @property
    def size(self) -> int:
        """Number of elements of each operation's result."""
        size: int = _value(self.nodes[-1]).numel()
        return size

    @property
    def is_last(self) -> bool:
        """True if only the output of the graph reads its results."""
        return all(user.op == "output" for node in self.results for user in node.users)

    @property
    def nest(self) -> list[tuple[int, tuple[int, ...]]]:
        """Loop nest over operands and results, as `loop_nest` returns it."""
        values = [_value(node) for node in (*self.operands, *self.results)]
        return loop_nest(values[-1], values)


def find_regions(compilation: Compilation) -> list[Region]:
    """Return the regions of a graph in order; many have a single operation.

    If an operation outside reads a value of a region, the operations that this value depends on
    become a region that ends there, so that it can be computed there. The other operations stay
    open for more: they move behind that place in the graph.
    """
    writers, fusible = compilation.analysis(memory).writers, compilation.analysis(element_wise)
    open_regions: dict[fx.Node, Region] = {}  # regions that can grow, by their nodes
    found: dict[Region, None] = {}

    def open_region(region: Region) -> None:
        open_regions.update(dict.fromkeys(region.nodes, region))
        found[region] = None

    for node in compilation.graph.nodes:
        if node in writers:
            open_regions.clear()  # operations before a write must read before it
        read = [operand for operand in node.all_input_nodes if operand in open_regions]
        fitting = [x for x in read if node in fusible and _shape(x) == _shape(node)]
        joined = dict.fromkeys(open_regions[operand] for operand in fitting)
        for region in dict.fromkeys(open_regions[operand] for operand in read):
            if region in joined:
                continue
            needed, rest = region.split(read)
            for member in region.nodes:
                del open_regions[member]
            del found[region]
            found[needed] = None
            if rest.nodes:
                open_region(rest)
            for member in rest.nodes:  # nothing has read them yet, and they may read `needed`
                node.prepend(member)
        if node in fusible:
            for region in joined:
                del found[region]
            open_region(Region([member for region in joined for member in region.nodes] + [node]))
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
        dtypes = [_value(x).dtype for x in (*node.all_input_nodes, node)]
        if dtypes == [torch.bfloat16, torch.float32]:
            for user in list(node.users):
                if user in fusible and _shape(user) == _shape(node):
                    with graph.inserting_before(user):
                        user.replace_input_with(node, graph.node_copy(node))
                    is_changed = True
    return is_changed


def flatten_vectors(compilation: Compilation) -> bool:
    """Compute operations on vectors, one number for each channel, without dimensions of size 1.

    Operations that read the result in another shape read a view of it. So no view stands between
    operations that can be one loop.
    """
    graph, fusible = compilation.graph, compilation.analysis(element_wise)
    is_changed = False
    for node in list(graph.nodes):
        operands = node.all_input_nodes
        fits = node in fusible and all(_is_vector(x, node) for x in (*operands, node))
        if not fits or any(user.op == "output" for user in node.users):
            continue
        with graph.inserting_before(node):
            flat = {x: _flat(x) for x in operands}
            arguments = (flat.get(x, x) if isinstance(x, fx.Node) else x for x in node.args)
            result = emit(graph, node.target, *arguments, **node.kwargs)
            if len(_shape(node)) > 1:
                result = emit(graph, aten.view.default, result, _shape(node))
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        is_changed = True
    return is_changed


def _is_vector(node: fx.Node, like: fx.Node) -> bool:
    """True if at most one dimension is larger than 1, with as many elements as `like` has."""
    value, length = _value(node), _value(like).numel()
    return bool(value.is_contiguous()) and value.numel() == length == max(value.shape, default=0)


def _flat(node: fx.Node) -> fx.Node:
    """Return a vector as one dimension: the value that it is a view of, or a new view."""
    base: fx.Node | None = node
    while base is not None and _is_vector(base, node):
        if len(_shape(base)) == 1:
            return base
        base = viewed(base)
    return emit(node.graph, aten.view.default, node, (_value(node).numel(),))


def unviewed(node: fx.Node) -> fx.Node:
    """Return the value that `node` is a view of, if both have the same elements in one order."""
    base, result = viewed(node), node
    while base is not None:
        if _memory_order(base) == _memory_order(node):
            result = base
        base = viewed(base)
    return result


def _memory_order(node: fx.Node) -> Any:
    """Return what decides which elements of memory a value has, and in which order."""
    value = _value(node)
    sides = zip(value.shape, value.stride(), strict=True)
    return value.dtype, value.storage_offset(), [side for side in sides if side[0] != 1]


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _shape(node: fx.Node) -> Any:
    return _value(node).shape


def loop_nest(result: Tensor, tensors: Sequence[Tensor]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the loops over `result`, innermost last: the size of each, and each tensor's step.

    Neighbouring dimensions that all tensors step through evenly are one loop.
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
    """Return the strides of a tensor that is broadcast to `ndim` dimensions."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return [0] * (ndim - tensor.ndim) + [0 if size == 1 else stride for size, stride in sides]
