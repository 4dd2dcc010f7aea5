"""Donation: new values are written into the memory of arguments that the caller gives away."""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import memory_owners

Aliases = dict[int, int]  # position among the outputs -> position among the inputs


def donate(graph: fx.GraphModule, donated: Sequence[int]) -> Aliases:
    """Let `graph` write outputs into the donated inputs, and tell which output went where.

    Outputs take donated inputs of their shape and type in order, so a state that goes in and comes
    out in one order is updated in place, and keeps its strides whatever those of the new value are:
    the next call finds the same graph.  An output that was written so is no output of the graph any
    more.  Changes `graph`, which must have come from `trace`.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    (end,) = graph.graph.find_nodes(op="output")
    outputs: list[fx.Node] = list(end.args[0])
    aliases = _match(inputs, outputs, donated)
    owners = memory_owners(graph.graph)
    given = {inputs[position] for position in donated}
    values = list(outputs)
    with graph.graph.inserting_before(end):
        for position, node in enumerate(outputs):
            stays = position in aliases and node is inputs[aliases[position]]
            if owners[node] in given and not stays:
                # A donated argument, or a view of one, is read before any of them is written.
                values[position] = graph.graph.call_function(torch.ops.aten.clone.default, (node,))
        for position, target in aliases.items():
            if values[position] is not inputs[target]:
                arguments = (inputs[target], values[position])
                graph.graph.call_function(torch.ops.aten.copy_.default, arguments)
    end.args = ([value for i, value in enumerate(values) if i not in aliases],)
    graph.recompile()
    return aliases


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
