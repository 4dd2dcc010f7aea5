"""Donation: outputs take the memory of arguments that the caller gives away, and no others'."""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import is_input, memory
from funcnets.compiler.graph.compilation import Aliases, Compilation
from funcnets.compiler.graph.edit import emit

aten = torch.ops.aten


def donate(compilation: Compilation) -> bool:
    """Write outputs into donated inputs, and note in `aliases` which output went where.

    Outputs take donated inputs of their shape, dtype and device in order, so a state that goes in
    and comes out in one order is updated in place.  It keeps its strides whatever those of the new
    value are, so the next call finds the same graph.  An output that was written so is no output of
    the graph any more.

    No other output is an input, a captured tensor or a view of one: it becomes a copy, so that
    nobody who writes to it, or donates it, changes a value that was never donated.
    """
    graph, owners = compilation.graph, compilation.analysis(memory).owners
    inputs = graph.find_nodes(op="placeholder")
    (end,) = graph.find_nodes(op="output")
    outputs: list[fx.Node] = list(end.args[0])
    aliases = _match(inputs, outputs, compilation.donated)
    given = {inputs[position] for position in compilation.donated}
    values = list(outputs)
    with graph.inserting_before(end):
        for position, node in enumerate(outputs):
            owner = owners[node]
            stays = position in aliases and node is inputs[aliases[position]]
            # A donated argument, or a view of one, is read before any of them is written.
            if not stays and (owner in given or (is_input(owner) and position not in aliases)):
                values[position] = emit(graph, aten.clone.default, node)
        for position, place in aliases.items():
            target = inputs[place]
            if values[position] is not target:
                write = graph.call_function(aten.copy_.default, (target, values[position]))
                write.meta["val"] = target.meta["val"]
    is_changed = bool(aliases) or values != outputs
    end.args = ([value for i, value in enumerate(values) if i not in aliases],)
    compilation.aliases = aliases
    return is_changed


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
