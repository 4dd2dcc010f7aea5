"""Memory: which values of a traced graph share it, and which operations write to it.

Read off the operations' schemas, so it stays true when a pass replaces one node by another.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
# Give views, although their schemas don't say so.
_UNSAFE = (
    aten._unsafe_view.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
)


def memory_owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each value, the node that its memory came from: itself, unless it is a view."""
    owners: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        base = viewed(node)
        owners[node] = node if base is None else owners[base]
    return owners


def changed(graph: fx.Graph) -> set[fx.Node]:
    """The values whose memory is written to after they were made: where they are read matters."""
    owners = memory_owners(graph)
    overwritten = {owners[value] for node in graph.nodes for value in written(node)}
    return {node for node, owner in owners.items() if owner in overwritten}


def viewed(node: Any) -> fx.Node | None:
    """The operand in whose memory the value is, or a part of it; None if it has its own."""
    if node.target is operator.getitem:
        return viewed(node.args[0])
    if node.target in _UNSAFE:
        return node.args[0]
    is_view = any(result.alias_info is not None for result in _schema(node, "returns"))
    return next((operand for operand, _ in _aliased(node)), None) if is_view else None


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that the operation writes to."""
    return (operand for operand, alias in _aliased(node) if alias.is_write)


def is_exact(node: fx.Node) -> bool:
    """Whether the value has the strides that it is known with, as not all of ATen's have."""
    made: Any = node.args[0] if node.target is operator.getitem else node
    is_own = made.op == "call_module" or getattr(made.target, "namespace", None) == "funcnets"
    return is_given(made) or is_own


def allow_copies(graph: fx.Graph) -> None:
    """Let views be copies where memory may turn out to be other than it is known as.

    What is written to stays a view, or is refused.
    """
    overwritten = changed(graph)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        if node not in overwritten and not is_exact(node.args[0]):
            node.target = aten.reshape.default


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
