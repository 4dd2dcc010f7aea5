"""Remove nodes that nobody reads, and conversions that are made twice."""

from typing import Any

import torch
from torch import fx

from funcnets._torch import OpOverload
from funcnets.compiler.graph.aliasing import memory
from funcnets.compiler.graph.compilation import Compilation

aten = torch.ops.aten
CONVERSIONS = (aten._to_copy.default, aten.clone.default)


def remove_dead_code(compilation: Compilation) -> bool:
    """Remove pure operations that nobody reads.

    Derivatives compute some on their way, such as gradients of what is frozen; fusions leave the
    nodes that they replace.  Operations that return nothing stay, as they check something, and
    so do embeddings: their gradient skips an index out of range, which they refuse.
    """
    return bool(compilation.graph.eliminate_dead_code(_has_effect))


def _has_effect(node: fx.Node) -> bool:
    returns_nothing = isinstance(node.target, OpOverload) and not node.target._schema.returns
    return returns_nothing or node.target is aten.embedding.default or node.is_impure()


def share_conversions(compilation: Compilation) -> bool:
    """Convert a tensor to a memory format once, where several lowerings convert it.

    Other common subexpressions stay, as sharing them would undo recomputation (`remat`).  A result
    of the function keeps memory of its own.
    """
    graph, shared = compilation.graph, compilation.analysis(memory)
    (end,) = graph.find_nodes(op="output")
    results = {shared.owners[result] for result in end.all_input_nodes}
    known: dict[Any, fx.Node] = {}
    is_changed = False
    for node in list(graph.nodes):
        converts = node.target in CONVERSIONS and "memory_format" in node.kwargs
        if not converts or node in shared.overwritten or shared.owners[node] in results:
            continue
        first = known.setdefault((node.target, node.args, tuple(node.kwargs.items())), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
            is_changed = True
    return is_changed
