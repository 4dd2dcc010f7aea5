"""Edit a graph: emit nodes that know their shapes, and replace others."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from funcnets.compiler.recorder import shaped

Replacements = dict[fx.Node, fx.Node]  # old node -> the node that is read in its place


def replace(replacements: Replacements) -> None:
    """Let what reads the old nodes read the new ones."""
    for old, new in replacements.items():
        old.replace_all_uses_with(new)


def emit(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call of `target` to `graph`, with the fake tensors that it gives."""
    node = graph.call_function(target, args, kwargs)
    given: Any = fx.node.map_arg((args, kwargs), fake_value)
    if target is operator.getitem:
        node.meta["val"] = target(*given[0])
    else:
        node.meta["val"] = shaped(target, *given)
    return node


def calls(value: Any, target: Any) -> bool:
    """True if `value` is a node that calls `target`."""
    return isinstance(value, fx.Node) and value.target is target


def calls_for_one(value: Any, target: Any) -> bool:
    """True if `value` is a node that calls `target`, and one node alone reads it."""
    return calls(value, target) and len(value.users) == 1


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return the positional arguments of a node's call."""
    return node.args


def fake_value(node: fx.Node) -> Any:
    """Return the fake tensor, or the tuple of them, that a node gives."""
    return node.meta["val"]
