"""Edit a graph: emit nodes that know their shapes, and replace others."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from funcnets.compiler.recorder import shaped

Replacements = dict[fx.Node, fx.Node]  # what is computed otherwise, and by which node


def replace(replacements: Replacements) -> None:
    """Let what reads the old nodes read the new ones."""
    for old, new in replacements.items():
        old.replace_all_uses_with(new)


def emit(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A new node of `graph`, which knows what it gives for fake tensors."""
    node = graph.call_function(target, args, kwargs)
    given: Any = fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
    if target is operator.getitem:
        node.meta["val"] = target(*given[0])
    else:
        node.meta["val"] = shaped(target, *given)
    return node


def _is(value: Any, target: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is target


def _is_once(value: Any, target: Any) -> bool:
    return _is(value, target) and len(value.users) == 1


def _args(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
