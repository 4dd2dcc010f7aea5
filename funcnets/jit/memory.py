"""Memory: which values of a traced graph share it, and which operations write to it.

Read off the operations' schemas, so it stays true when a pass replaces one node by another.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx


def memory_owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each value, the node that its memory came from: itself, unless it is a view."""
    owners: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        base = viewed(node)
        owners[node] = node if base is None else owners[base]
    return owners


def viewed(node: Any) -> fx.Node | None:
    """The operand in whose memory the value is, or a part of it; None if it has its own."""
    if node.target is operator.getitem:
        return viewed(node.args[0])
    if node.target is torch.ops.aten._unsafe_view.default:  # whose schema doesn't say so
        return node.args[0]
    is_view = any(result.alias_info is not None for result in _schema(node, "returns"))
    return next((operand for operand, _ in _aliased(node)), None) if is_view else None


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that the operation writes to."""
    return (operand for operand, alias in _aliased(node) if alias.is_write)


def is_given(node: fx.Node) -> bool:
    """Whether it is an argument of the graph, or a tensor that the function captured."""
    return node.op in ("placeholder", "get_attr")


def _aliased(node: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
    """The operands that the operation writes to or gives views of, with what its schema says."""
    arguments = _schema(node, "arguments")
    by_name = ((argument, node.kwargs.get(argument.name)) for argument in arguments)
    for argument, value in (*zip(arguments, node.args, strict=False), *by_name):
        if argument.alias_info is not None:
            values = value if isinstance(value, list | tuple) else [value]
            yield from (
                (value, argument.alias_info) for value in values if isinstance(value, fx.Node)
            )


def _schema(node: fx.Node, part: str) -> Any:
    target = node.target
    return getattr(target._schema, part) if isinstance(target, torch._ops.OpOverload) else ()
