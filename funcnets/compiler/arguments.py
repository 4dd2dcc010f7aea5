"""The arguments of a call of a jitted function: checked, taken apart, and as the key of a cache."""

import reprlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets._torch import storage_id
from funcnets.compiler.autocast import autocast_types
from funcnets.compiler.errors import TraceError
from funcnets.compiler.graph.structure import Structure, take_apart


class Call(NamedTuple):
    """The arguments of one call, taken apart.

    Attributes:
        tensors: the tensors among the arguments, in order.
        donated: positions among `tensors` of those that are donated.
        rebuild: the function of the tensors alone; the other arguments are in it.
        static: the values of the static arguments.
        key: calls with the same key run the same graph.
    """

    tensors: list[Tensor]
    donated: tuple[int, ...]
    rebuild: Callable[..., Any]
    static: tuple[Any, ...]
    key: Hashable


def take_call_apart(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    donate_argnums: tuple[int, ...],
    static_argnums: tuple[int, ...],
) -> Call:
    """Return the call `function(*args, **kwargs)` as a function of tensors.

    Raises:
        TraceError: for an argument that is neither tensor nor static, or static and not hashable.
        ValueError: where a donated tensor shares its memory with another argument.
    """
    static = {i: args[i] for i in static_argnums if i < len(args)}
    dynamic = [None if i in static_argnums else arg for i, arg in enumerate(args)]
    tensors, structure = take_apart((dynamic, kwargs))
    if any(leaf.is_neg() or leaf.is_conj() for leaf in tensors):
        # Loops read numbers as they are in memory, where bits of the tensor can't be seen.
        tensors = [leaf.resolve_conj().resolve_neg() for leaf in tensors]
    if len(tensors) < structure.spec.num_leaves:
        _check_leaves(dynamic, kwargs)
    donated = _donated(structure, tensors, donate_argnums) if donate_argnums else ()

    def rebuild(*values: Tensor) -> Any:
        positional, named = structure.fill(values)
        for position, value in static.items():
            positional[position] = value
        return function(*positional, **named)

    key = (structure, _layouts(tensors), _static_key(static), default_types())
    return Call(tensors, donated, rebuild, tuple(static.values()), key)


def _layouts(tensors: list[Tensor]) -> Hashable:
    """Return what a graph for these tensors depends on."""
    layouts = tuple((leaf.shape, leaf.dtype, leaf.device, leaf.stride()) for leaf in tensors)
    # A tensor that is given twice is traced as one, so the graph serves such calls alone.
    first: dict[int, int] = {}
    sharing = tuple(first.setdefault(id(leaf), i) for i, leaf in enumerate(tensors))
    return layouts, sharing


def default_types() -> Hashable:
    """Return PyTorch's default dtype, and the dtypes of autocast by kind of device."""
    return torch.get_default_dtype(), autocast_types()


def _check_leaves(dynamic: list[Any], kwargs: dict[str, Any]) -> None:
    """Raise TraceError unless all leaves are tensors or None."""
    for name, leaf in tree.flatten_named((dynamic, kwargs)).items():
        if leaf is not None and not isinstance(leaf, Tensor):
            _, place = name.split(".", 1)
            raise TraceError(
                f"jit: argument {place} is {reprlib.repr(leaf)}: pass a tensor, as a number "
                "would be baked into the graph, or give it by position and name it in "
                "static_argnums"
            )


def _donated(
    structure: Structure, tensors: list[Tensor], donate_argnums: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the positions of the donated tensors; each must be given once only."""
    positional = structure.spec.children()[0].children()
    ends = list(accumulate(each.num_leaves for each in positional))
    argument_of = (bisect_right(ends, place) for place in structure.places)
    donated = [i for i, argument in enumerate(argument_of) if argument in donate_argnums]
    owners = [storage_id(tensor) for tensor in tensors]
    times = Counter(owners)
    for position in donated:
        if times[owners[position]] > 1:
            raise ValueError(
                f"jit: a donated tensor of shape {tuple(tensors[position].shape)} shares its "
                "memory with another argument: clone one of them, or don't donate"
            )
    return tuple(donated)


def _static_key(static: dict[int, Any]) -> Hashable:
    return tuple(_hashable(position, value) for position, value in static.items())


def _hashable(position: int, value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        raise TraceError(
            f"jit: static argument {position} is {value!r}, which can't be hashed: "
            "pass a number, a string, or a tuple of them"
        ) from None
    return position, _kind(value)


def _kind(value: Any) -> Hashable:
    """Return a key that differs for 1, 1.0 and True, which are equal, and for 0.0 and -0.0."""
    if isinstance(value, tuple):
        return type(value), tuple(map(_kind, value))
    return type(value), repr(value) if isinstance(value, float | complex) else value


def prints_as_itself(value: Any) -> bool:
    """True if such values are the same whenever they print the same."""
    if isinstance(value, tuple):
        return type(value) is tuple and all(map(prints_as_itself, value))
    return value is None or type(value) in (int, float, bool, str, torch.dtype)
