"""Optimizers for parts of the parameters, selected by patterns of dotted names.

A pattern is a shell pattern: `stage1.*` matches all names below `stage1`, `*.weight` every weight,
`*` everything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from funcnets import tree
from funcnets.optim.transformations import Optimizer, check_optimizer, check_state, stateless


def mask(params: Any, *patterns: str) -> Any:
    """Return the tree of `params` with True at each leaf whose name matches a pattern, else False.

    Raises ValueError for a pattern that matches no leaf.

    >>> import torch
    >>> from funcnets import optim
    >>> optim.mask({"fc": {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}}, "*.weight")
    {'fc': {'weight': True, 'bias': False}}
    """
    names = tree.names(params)
    matching = {name for pattern in patterns for name in _matching(names, pattern)}
    return tree.map_named(lambda name, leaf: name in matching, params)


def frozen() -> Optimizer:
    """Return the optimizer whose updates are zero, and which has no state.

    It reads only the dtypes of the gradients, so that `jit` removes their computation.
    """
    return stateless(
        lambda grads, params: tree.map(
            lambda g, p: torch.zeros_like(p, dtype=g.dtype), grads, params
        )
    )._replace(is_whole=True)


def masked(optimizer: Optimizer, *patterns: str) -> Optimizer:
    """Return `optimizer` for the leaves whose name matches a pattern.

    The other leaves stay as they are: a gradient transformation, such as `add_decayed_weights` or
    a clip, passes their gradients on unchanged to the next part of the `chain`; a whole optimizer,
    such as `sgd`, or a chain that ends in a learning rate, gives them updates of zero.  (optax's
    `masked` passes gradients on in both cases, and adding raw gradients is gradient ascent.)  The
    state is that of `optimizer`, for the matching leaves by their dotted names.

    Raises TypeError unless it is given an optimizer and patterns, and ValueError without a
    pattern and, from `init` and `update`, for a pattern that matches no leaf.

    >>> import torch
    >>> from funcnets import optim
    >>> decay = optim.masked(optim.add_decayed_weights(0.1), "*.weight")  # not for biases
    >>> optimizer = optim.chain(decay, optim.sgd(1.0))
    >>> params = {"fc": {"weight": torch.ones(1), "bias": torch.ones(1)}}
    >>> grads = {"fc": {"weight": torch.zeros(1), "bias": torch.zeros(1)}}
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> optim.apply_updates(params, updates)
    {'fc': {'weight': tensor([0.9000]), 'bias': tensor([1.])}}
    """

    check_optimizer("masked: the first argument", optimizer)
    if not patterns:
        raise ValueError('masked: no pattern is given; expected one or more, such as "*.weight"')
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"masked: a pattern is {pattern!r}; expected strings, each an argument of its own"
            )

    def matching_names(params: Any) -> list[str]:
        flags = tree.flatten_named(mask(params, *patterns))
        return [name for name in flags if flags[name]]

    def init(params: Any) -> Any:
        return optimizer.init(_select(params, matching_names(params)))

    def update(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        names = matching_names(params)
        updates, opt_state = optimizer.update(
            _select(grads, names), opt_state, _select(params, names)
        )

        def rest(grad: Any, param: Any) -> Any:
            return torch.zeros_like(param, dtype=grad.dtype) if optimizer.is_whole else grad

        return tree.map_named(
            lambda name, g, p: updates[name] if name in updates else rest(g, p), grads, params
        ), opt_state

    return Optimizer(init, update, optimizer.is_whole)


def partition(optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """Return one optimizer made of several, each for the leaves that its pattern matches first.

    The patterns are tried in the order of the mapping.  The state is a dict from each pattern to
    the state of its optimizer, for its leaves by their dotted names.

    Raises TypeError for what is no optimizer, and ValueError, from `init` and `update`, for a
    pattern that matches no leaf, or only leaves of earlier patterns, and for a leaf that no
    pattern matches.

    >>> import torch
    >>> from funcnets import optim
    >>> optimizer = optim.partition({"fc.*": optim.sgd(0.5), "*": optim.frozen()})
    >>> params = {"stem": {"bias": torch.ones(1)}, "fc": {"bias": torch.ones(1)}}
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> optim.apply_updates(params, updates)
    {'stem': {'bias': tensor([1.])}, 'fc': {'bias': tensor([0.5000])}}
    """

    for pattern, optimizer in optimizers.items():
        check_optimizer(f"partition: the optimizer for `{pattern}`", optimizer)

    def init(params: Any) -> dict[str, Any]:
        parts = _assign(tree.names(params), list(optimizers))
        return {
            pattern: optimizers[pattern].init(_select(params, names))
            for pattern, names in parts.items()
        }

    def update(grads: Any, opt_state: dict[str, Any], params: Any) -> tuple[Any, dict[str, Any]]:
        check_state(opt_state, dict, "a dict with a part for each pattern")
        if opt_state.keys() != optimizers.keys():
            raise ValueError(
                f"opt_state has parts {tree.listed(list(opt_state))}; expected "
                f"{tree.listed(list(optimizers))}: pass the state that this optimizer's own init "
                "returned"
            )
        updates: dict[str, Any] = {}
        states: dict[str, Any] = {}
        for pattern, names in _assign(tree.names(params), list(optimizers)).items():
            part, states[pattern] = optimizers[pattern].update(
                _select(grads, names), opt_state[pattern], _select(params, names)
            )
            updates |= part
        return tree.map_named(lambda name, grad: updates[name], grads), states

    return Optimizer(init, update, any(optimizer.is_whole for optimizer in optimizers.values()))


def _select(values: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the leaves with these dotted names, by name."""
    named = tree.flatten_named(values)
    return {name: named[name] for name in names}


def _assign(names: Sequence[str], patterns: Sequence[str]) -> dict[str, list[str]]:
    """Return the names that each pattern is the first to match; see `partition` for errors."""
    parts: dict[str, list[str]] = {}
    unassigned = list(names)
    for pattern in patterns:
        matching = _matching(names, pattern)
        parts[pattern] = [name for name in unassigned if name in matching]
        unassigned = [name for name in unassigned if name not in matching]
        if not parts[pattern]:
            raise ValueError(
                f"the pattern `{pattern}` comes too late: earlier patterns match all leaves that "
                "it matches; put it before them"
            )
    if unassigned:
        raise ValueError(
            f"no pattern matches {tree.listed(unassigned)}: add one, such as `*` at the end for "
            "the rest"
        )
    return parts


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    return tree.matching(names, pattern, "parameter")
