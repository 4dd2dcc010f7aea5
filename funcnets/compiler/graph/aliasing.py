"""Alias analysis: which values of a graph share memory, and which operations write to it.

All is read off the operations' schemas, so it stays true when a pass replaces one node by another.
"""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

from funcnets._torch import OpOverload

aten = torch.ops.aten
# These give views, or what they are given, although their schemas don't say so.
_UNDECLARED_VIEWS = {
    aten._unsafe_view.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
}
if torch.distributed.is_available():
    _UNDECLARED_VIEWS.add(torch.ops._c10d_functional.wait_tensor.default)


class Memory(NamedTuple):
    """The memory of all values of a graph.

    Attributes:
        owners: for each value, the node that its memory came from: itself, unless it is a view.
        writers: the operations that write to an operand.
        overwritten: the values whose memory is written to after they were made, so that it
            matters where in the graph they are read.
    """

    owners: dict[fx.Node, fx.Node]
    writers: frozenset[fx.Node]
    overwritten: frozenset[fx.Node]


def memory(graph: fx.Graph) -> Memory:
    """Analyze which values of `graph` share memory, and what is written to it."""
    owners: dict[fx.Node, fx.Node] = {}
    writers, changed = set[fx.Node](), set[fx.Node]()
    for node in graph.nodes:
        base = viewed(node)
        owners[node] = node if base is None else owners[base]
        for operand in written(node):
            writers.add(node)
            changed.add(owners[operand])
    overwritten = frozenset(node for node, owner in owners.items() if owner in changed)
    return Memory(owners, frozenset(writers), overwritten)


def viewed(node: Any) -> fx.Node | None:
    """Return the operand that the value is a view of; None if it has memory of its own."""
    if node.target is operator.getitem:
        return viewed(node.args[0])
    if node.target in _UNDECLARED_VIEWS:
        operand: fx.Node = node.args[0]
        return operand
    is_view = any(result.alias_info is not None for result in _schema(node, "returns"))
    return next((operand for operand, _ in _aliased(node)), None) if is_view else None


def written(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the operands that the operation writes to."""
    return (operand for operand, alias in _aliased(node) if alias.is_write)


def is_exact(node: fx.Node) -> bool:
    """True if the value has the strides of its fake tensor, as not all of ATen's values have."""
    made: Any = node.args[0] if node.target is operator.getitem else node
    return is_input(made) or is_loop(made) or getattr(made.target, "namespace", "") == "funcnets"


def is_input(node: fx.Node) -> bool:
    """True if the node is an argument of the graph, or a tensor that the function captured."""
    return node.op in ("placeholder", "get_attr")


def is_loop(node: fx.Node) -> bool:
    """True if the node calls a compiled loop: with its operands, and where to write."""
    return node.op == "call_module"


def _aliased(node: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
    """Yield the operands that are written to or viewed, with what the schema says of each."""
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
    return getattr(target._schema, part) if isinstance(target, OpOverload) else ()
