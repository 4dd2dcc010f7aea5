"""Optimizers for parts of the parameters, which patterns of dotted names choose.

A pattern is the shell's: `stage1.*` is all below `stage1`, `*.weight` every weight, `*` everything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from funcnets import tree
from funcnets.optim.transformations import Optimizer, stateless


def mask(params: Any, *patterns: str) -> Any:
    """The tree of `params` with True at each leaf whose name matches a pattern, else False.

    Raises ValueError for a pattern that matches no leaf.
    """
    names = tree.names(params)
    chosen = {name for pattern in patterns for name in _matching(names, pattern)}
    return tree.map_named(lambda name, leaf: name in chosen, params)


def frozen() -> Optimizer:
    """Updates of zero, and no state: what it is given stays as it is.

    Of the gradients only dtypes are read, so that `jit` leaves their computation out.
    """
    return stateless(
        lambda grads, params: tree.map(
            lambda g, p: torch.zeros_like(p, dtype=g.dtype), grads, params
        )
    )


def masked(optimizer: Optimizer, *patterns: str) -> Optimizer:
    """`optimizer` for the leaves whose name matches a pattern; the rest pass through unchanged.

    Weight decay on weights alone: `chain(masked(add_decayed_weights(1e-4), "*.weight"), sgd(0.1))`.
    Its state is that of `optimizer`, for those leaves by their dotted names.

    Raises ValueError, from `init` and `update`, for a pattern that matches no leaf.
    """

    def choose(params: Any) -> list[str]:
        chosen = tree.flatten_named(mask(params, *patterns))
        return [name for name in chosen if chosen[name]]

    def init(params: Any) -> Any:
        return optimizer.init(_pick(params, choose(params)))

    def update(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        names = choose(params)
        updates, opt_state = optimizer.update(_pick(grads, names), opt_state, _pick(params, names))
        return tree.map_named(lambda name, grad: updates.get(name, grad), grads), opt_state

    return Optimizer(init, update)


def partition(optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """An optimizer for each part: a leaf goes to the first pattern that its name matches.

    `partition({"stage1.*": frozen(), "fc.*": sgd(0.1), "*": sgd(0.01)})`.  Its state is a dict from
    each pattern to the state of its optimizer, for its leaves by their dotted names.

    Raises ValueError, from `init` and `update`, for a pattern that matches no leaf, or only
    leaves of earlier patterns, and for a leaf that no pattern matches.
    """

    def init(params: Any) -> dict[str, Any]:
        parts = _divide(tree.names(params), list(optimizers))
        return {
            pattern: optimizers[pattern].init(_pick(params, names))
            for pattern, names in parts.items()
        }

    def update(grads: Any, opt_state: dict[str, Any], params: Any) -> tuple[Any, dict[str, Any]]:
        if opt_state.keys() != optimizers.keys():
            raise ValueError(
                f"opt_state has parts {tree.listed(list(opt_state))}; expected "
                f"{tree.listed(list(optimizers))}: pass what this optimizer's own init gave"
            )
        updates: dict[str, Any] = {}
        states: dict[str, Any] = {}
        for pattern, names in _divide(tree.names(params), list(optimizers)).items():
            part, states[pattern] = optimizers[pattern].update(
                _pick(grads, names), opt_state[pattern], _pick(params, names)
            )
            updates |= part
        return tree.map_named(lambda name, grad: updates[name], grads), states

    return Optimizer(init, update)


def _pick(values: Any, names: Sequence[str]) -> dict[str, Any]:
    named = tree.flatten_named(values)
    return {name: named[name] for name in names}


def _divide(names: Sequence[str], patterns: Sequence[str]) -> dict[str, list[str]]:
    """The names that each pattern matches first, in order."""
    parts: dict[str, list[str]] = {}
    left = list(names)
    for pattern in patterns:
        matching = _matching(names, pattern)
        parts[pattern] = [name for name in left if name in matching]
        left = [name for name in left if name not in matching]
        if not parts[pattern]:
            raise ValueError(
                f"the pattern `{pattern}` comes too late: earlier ones match all that it matches; "
                "put it before them"
            )
    if left:
        raise ValueError(
            f"no pattern matches {tree.listed(left)}: add one, such as `*` at the end for the rest"
        )
    return parts


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    return tree.matching(names, pattern, "parameter")
