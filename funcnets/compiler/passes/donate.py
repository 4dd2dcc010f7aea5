"""Donation: outputs are written into the memory of arguments that the caller gives away."""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import memory
from funcnets.compiler.graph.compilation import Aliases, Compilation

aten = torch.ops.aten


def donate(compilation: Compilation) -> bool:
    """Write outputs into donated inputs, and note in `aliases` which output went where.

    Outputs take donated inputs of their shape, dtype and device in order, so a state that goes in
    and comes out in one order is updated in place.  It keeps its strides whatever those of the new
    value are, so the next call finds the same graph.  An output that was written so is no output of
    the graph any more.
    """
    if not compilation.donated:
        return False
    graph, owners = compilation.graph, compilation.analysis(memory).owners
    inputs = graph.find_nodes(op="placeholder")
    (end,) = graph.find_nodes(op="output")
    outputs: list[fx.Node] = list(end.args[0])
    aliases = _match(inputs, outputs, compilation.donated)
    given = {inputs[position] for position in compilation.donated}
    values = list(outputs)
    with graph.inserting_before(end):
        for position, node in enumerate(outputs):
            stays = position in aliases and node is inputs[aliases[position]]
            if owners[node] in given and not stays:
                # A donated argument, or a view of one, is read before any of them is written.
                values[position] = _emit_like(graph, node, aten.clone.default, (node,))
        for position, place in aliases.items():
            target = inputs[place]
            if values[position] is not target:
                _emit_like(graph, target, aten.copy_.default, (target, values[position]))
    end.args = ([value for i, value in enumerate(values) if i not in aliases],)
    compilation.aliases = aliases
    return True


def _emit_like(graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Add a call whose result has the shape and strides of `like`."""
    node = graph.call_function(target, args)
    node.meta["val"] = like.meta["val"]
    return node


def _match(
    inputs: Sequence[fx.Node], outputs: Sequence[fx.Node], donated: Sequence[int]
) -> Aliases:
    free: dict[Any, deque[int]] = defaultdict(deque)
    for position in donated:
        free[_kind(inputs[position])].append(position)
    return {
        position: free[_kind(node)].popleft()
        for position, node in enumerate(outputs)
        if free[_kind(node)]
    }


def _kind(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return node.name
    return (value.shape, value.dtype, value.device)
