"""The arguments of a call of a jitted function: checked, taken apart, and as the key of a cache."""

import reprlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from inspect import Parameter, signature
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets._torch import storage_id
from funcnets.compiler.autocast import autocast_types
from funcnets.compiler.errors import LEFT_OF_TRACE, TraceError, is_left_of_trace
from funcnets.compiler.graph.structure import Structure, take_apart

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Selection(NamedTuple):
    """Some arguments of a function, by position and by name, as a call may give them either way."""

    positions: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def without_first(self) -> "Selection":
        """Return the selection for a method that is bound to its first argument."""
        return Selection(tuple(i - 1 for i in self.positions if i), self.names)


def select(
    function: Callable[..., Any],
    argnums: int | Sequence[int],
    argnames: str | Sequence[str] = (),
    option: str = "argnums",
) -> Selection:
    """Return the arguments with these numbers and names.

    An argument that can be given by position and by name is selected for both.

    Raises ValueError for a number or a name that `function` has no argument for; `option` is what
    the caller calls them.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    if any(number < 0 for number in numbers):
        raise ValueError(f"jit: got argument numbers {numbers}, expected 0 or more")
    parameters = _parameters(function) if numbers or names else None
    if parameters is None:
        return Selection(tuple(sorted(set(numbers))), tuple(sorted(set(names))))
    by_position = [p for p in parameters if p.kind in _BY_POSITION]
    by_name = [p.name for p in parameters if p.kind in _BY_NAME]
    _check_numbers(numbers, parameters, len(by_position))
    if Parameter.VAR_KEYWORD not in {p.kind for p in parameters}:
        for name in set(names).difference(by_name):
            raise ValueError(
                f"jit: {option} has {name!r}; the function's arguments with a name are "
                f"{', '.join(by_name) or 'none'}"
            )
    chosen = {by_position[i].name for i in numbers if i < len(by_position)}
    positions = [i for i, p in enumerate(by_position) if p.name in names and p.name in by_name]
    return Selection(
        tuple(sorted({*numbers, *positions})),
        tuple(sorted({*names, *chosen.intersection(by_name)})),
    )


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    """Return the parameters of a function, if it tells."""
    try:
        return list(signature(function).parameters.values())
    except (TypeError, ValueError):  # not every function of C has a signature
        return None


def _check_numbers(numbers: Sequence[int], parameters: Iterable[Parameter], count: int) -> None:
    """Raise ValueError for a number that none of `count` arguments by position has."""
    kinds = {parameter.kind for parameter in parameters}
    if not numbers or max(numbers) < count or Parameter.VAR_POSITIONAL in kinds:
        return
    named = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
    more = f"; {', '.join(named)} are given by name: use static_argnames" if named else ""
    raise ValueError(
        f"jit: there is no argument {max(numbers)}, as the function takes {count} by position, "
        f"counted from 0{more}"
    )


class Call(NamedTuple):
    """The arguments of one call, taken apart.

    Attributes:
        tensors: the tensors among the arguments, in order.
        structure: the other arguments, but for the static ones: by position, and by name.
        names: the names of the arguments by name.
        constants: the static arguments, by position or name.
        key: calls with the same key run the same graph.
    """

    tensors: list[Tensor]
    structure: Structure
    names: tuple[str, ...]
    constants: dict[int | str, Any]
    key: Hashable

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` as one of the tensors alone."""

        def bound(*tensors: Tensor) -> Any:
            args, values = self.structure.fill(tensors)
            kwargs = dict(zip(self.names, values, strict=True))
            for label, value in self.constants.items():
                if isinstance(label, str):
                    kwargs[label] = value
                else:
                    args[label] = value
            return function(*args, **kwargs)

        return bound

    def positions(self, selection: Selection) -> tuple[int, ...]:
        """Return which of the tensors are those of selected arguments."""
        by_position, by_name = (part.children() for part in self.structure.spec.children())
        chosen = {i for i in range(len(by_position)) if i in selection.positions}
        names = enumerate(self.names, len(by_position))
        chosen |= {i for i, name in names if name in selection.names}
        ends = list(accumulate(part.num_leaves for part in (*by_position, *by_name)))
        argument_of = [bisect_right(ends, place) for place in self.structure.places]
        return tuple(i for i, argument in enumerate(argument_of) if argument in chosen)


def take_call_apart(args: tuple[Any, ...], kwargs: dict[str, Any], static: Selection) -> Call:
    """Return the arguments of a call, and the key of the graph that it runs.

    Leaves that are neither tensors nor None are lost; `check_leaves` refuses them.

    Raises TraceError for a static argument that is not hashable.
    """
    constants: dict[int | str, Any] = {i: args[i] for i in static.positions if i < len(args)}
    constants |= {name: kwargs[name] for name in static.names if name in kwargs}
    names = tuple(sorted(kwargs.keys() - constants.keys()))
    by_position = [None if i in constants else arg for i, arg in enumerate(args)]
    tensors, structure = take_apart((by_position, [kwargs[name] for name in names]))
    if any(leaf.is_neg() or leaf.is_conj() for leaf in tensors):
        # Loops read numbers as they are in memory, where bits of the tensor can't be seen.
        tensors = [leaf.resolve_conj().resolve_neg() for leaf in tensors]
    fixed = tuple(_hashable(label, value) for label, value in constants.items())
    defaults = torch.get_default_dtype(), autocast_types()
    key = (structure, names, _layouts(tensors), fixed, defaults)
    return Call(tensors, structure, names, constants, key)


def _layouts(tensors: list[Tensor]) -> Hashable:
    """Return what a graph for these tensors depends on."""
    layouts = tuple((leaf.shape, leaf.dtype, leaf.device, leaf.stride()) for leaf in tensors)
    # A tensor that is given twice is traced as one, so the graph serves such calls alone.
    first: dict[int, int] = {}
    sharing = tuple(first.setdefault(id(leaf), i) for i, leaf in enumerate(tensors))
    return layouts, sharing


def check_leaves(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    static: Selection,
    *,
    have_numbers: bool,
) -> None:
    """Raise TraceError unless all leaves of arguments that aren't static are tensors or None.

    `have_numbers`: refuse fake tensors too.
    """
    by_position = [None if i in static.positions else arg for i, arg in enumerate(args)]
    by_name = {name: arg for name, arg in kwargs.items() if name not in static.names}
    for path, leaf in tree.flatten_named((by_position, by_name)).items():
        _, place = path.split(".", 1)
        if have_numbers and is_left_of_trace(leaf):
            raise TraceError(f"jit: argument {place} {LEFT_OF_TRACE}")
        if leaf is not None and not isinstance(leaf, Tensor):
            raise TraceError(
                f"jit: argument {place} is {reprlib.repr(leaf)}: pass a tensor, as a number "
                f"would be baked into the graph, or {_as_static(function, place)}"
            )


def _as_static(function: Callable[..., Any], place: str) -> str:
    """Return how the argument at `place` can be static, in words."""
    label, *inside = place.split(".", 1)
    if inside:
        return "make it an argument of its own, which static_argnums or static_argnames can name"
    if not label.isdigit():
        return f'make it static, by static_argnames="{label}"'
    known = enumerate(_parameters(function) or ())
    names = {i: parameter.name for i, parameter in known if parameter.kind in _BY_NAME}
    by_name = f' or static_argnames="{names[int(label)]}"' if int(label) in names else ""
    return f"make it static, by static_argnums={label}{by_name}"


def check_donated(tensors: Sequence[Tensor], donated: Sequence[int]) -> None:
    """Raise ValueError where a donated tensor can't be written to.

    It can't, if it shares its memory with another argument, or is expanded.
    """
    owners = [storage_id(tensor) for tensor in tensors]
    times = Counter(owners)
    for position in donated:
        tensor = tensors[position]
        if times[owners[position]] > 1:
            raise ValueError(
                f"jit: a donated tensor of shape {tuple(tensor.shape)} shares its "
                "memory with another argument: clone one of them, or don't donate"
            )
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        if any(size > 1 and step == 0 for size, step in sizes):
            raise ValueError(
                f"jit: a donated tensor of shape {tuple(tensor.shape)} is expanded, so that "
                "several of its elements share their memory: clone it, or don't donate"
            )


def _hashable(label: int | str, value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        raise TraceError(
            f"jit: static argument {label} is {value!r}, which can't be hashed: "
            "pass a number, a string, or a tuple of them"
        ) from None
    return label, _kind(value)


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
