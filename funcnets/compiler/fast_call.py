"""The quick way through a call of a jitted function: for a call that is like one before it.

Trees are taken apart and put together by code that is written for their structure, once, and of
each tensor only that is read which a graph depends on.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from funcnets._torch import storage_id
from funcnets.compiler.autocast import autocast_types
from funcnets.compiler.errors import is_left_of_trace
from funcnets.compiler.graph.structure import Structure
from funcnets.tree import LEAF, sorted_names

Take = Callable[[tuple[Any, ...]], "list[Tensor] | None"]
Fill = Callable[[Sequence[Tensor]], Any]


class FastCall:
    """Takes the tensors out of arguments that are like those of a call before.

    Like means: the same structure, layouts, defaults and autocast, no tensor twice, and no memory
    that a donated tensor shares.  A tensor that was there in the last call, at the same address,
    such as those of a training's state, is looked at less closely than others.

    It is for a function without static arguments that is called without arguments by name.

    Args:
        structure: of the arguments, by position and by name.
        tensors: the tensors of that call.
        donated: positions of the donated ones, which were seen to share no memory.
    """

    def __init__(
        self, structure: Structure, tensors: Sequence[Tensor], donated: Sequence[int]
    ) -> None:
        self._take = taker(structure)
        self._shapes, self._strides = [x.shape for x in tensors], [x.stride() for x in tensors]
        self._kinds = [(x.dtype, x.device) for x in tensors]
        self._defaults = _defaults()
        self._donated = frozenset(donated)
        self._last: list[tuple[weakref.ref[Tensor], int]] = [
            (weakref.ref(x), x.data_ptr()) for x in tensors
        ]
        self._memory = {storage_id(tensors[i]) for i in donated}

    def take(self, args: tuple[Any, ...]) -> list[Tensor] | None:
        """Return the tensors of the arguments; None if they have to be looked at more closely."""
        try:
            tensors = self._take(args)
            is_alike = tensors is not None and self._is_alike(tensors)
        except (AttributeError, TypeError, RuntimeError):  # no tensors, or of a kind of their own
            return None
        return tensors if is_alike and self._defaults == _defaults() else None

    def _is_alike(self, tensors: list[Tensor]) -> bool:
        if [x.shape for x in tensors] != self._shapes:
            return False
        if [x.stride() for x in tensors] != self._strides:
            return False
        seen = enumerate(zip(self._last, tensors, strict=True))
        new = [i for i, (last, x) in seen if last[0]() is not x or last[1] != x.data_ptr()]
        if new:
            if len(set(map(id, tensors))) < len(tensors):
                return False
            if not all(self._is_of_kind(tensors[i], i) for i in new):
                return False
            return self._note(tensors, new)
        return True

    def _is_of_kind(self, x: Tensor, position: int) -> bool:
        dtype, device = self._kinds[position]
        is_plain = not x.is_neg() and not (dtype.is_complex and x.is_conj())
        return x.dtype is dtype and x.device == device and is_plain and not is_left_of_trace(x)

    def _note(self, tensors: list[Tensor], new: Sequence[int]) -> bool:
        """Note the new tensors, unless a donated one shares its memory; return False then."""
        memory = self._memory
        if not self._donated.isdisjoint(new):
            memory = {storage_id(tensors[i]) for i in self._donated}
            new = range(len(tensors))
        others = (i for i in new if i not in self._donated)
        if len(memory) < len(self._donated) or any(
            storage_id(tensors[i]) in memory for i in others
        ):
            return False
        self._memory = memory
        for i in new:
            self._last[i] = (weakref.ref(tensors[i]), tensors[i].data_ptr())
        return True


def _defaults() -> Hashable:
    return torch.get_default_dtype(), autocast_types()


class _Writer:
    """Lines of Python, and the values that they name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.values: dict[str, Any] = {}
        self._numbers = count()

    def name(self, prefix: str) -> str:
        """Return a new name."""
        return f"{prefix}{next(self._numbers)}"

    def constant(self, value: Any) -> str:
        """Return the name of a value."""
        name = self.name("c")
        self.values[name] = value
        return name

    def function(self, head: str) -> Callable[..., Any]:
        """Return the function that `head` and the lines define."""
        exec("\n".join((head, *(f"    {line}" for line in self.lines))), self.values)
        made: Callable[..., Any] = self.values["function"]
        return made


def taker(structure: Structure) -> Take:
    """Return the function that gives the tensors of arguments of this structure; None for others.

    `structure` is of the arguments by position, a list, and of those by name, none.
    """
    writer, leaves = _Writer(), []

    def walk(node: Any, value: str) -> None:
        if node == LEAF:
            leaves.append(value)
            return
        kind, inserted, parts = node
        names = [writer.name("v") for _ in parts]
        if inserted is not None:
            test, values = f"tuple({value}) != {writer.constant(inserted)}", f"{value}.values()"
            ordered = [names[inserted.index(name)] for name in sorted_names(inserted)]
        else:
            test, values, ordered = f"len({value}) != {len(parts)}", value, names
        writer.lines.append(
            f"if type({value}) is not {writer.constant(kind)} or {test}: return None"
        )
        if names:
            writer.lines.append(f"[{', '.join(names)}] = {values}")
        for name, part in zip(ordered, parts, strict=True):
            walk(part, name)

    by_position = structure.spec.node[2][0]
    walk((tuple, None, by_position[2]), "args")
    tensors = {leaves[place] for place in structure.places}
    writer.lines += [f"if {x} is not None: return None" for x in leaves if x not in tensors]
    writer.lines.append(f"return [{', '.join(leaves[place] for place in structure.places)}]")
    return writer.function("def function(args):")


def filler(structure: Structure) -> Fill:
    """Return the function that puts tensors in their places in a tree of this structure."""
    writer, places = _Writer(), iter(range(structure.spec.num_leaves))
    position_of = {place: i for i, place in enumerate(structure.places)}

    def written(node: Any) -> str:
        if node == LEAF:
            position = position_of.get(next(places))
            return "None" if position is None else f"x[{position}]"
        kind, inserted, parts = node
        made = [written(part) for part in parts]
        if inserted is not None:
            by_name = dict(zip(sorted_names(inserted), made, strict=True))
            entries = ", ".join(f"{writer.constant(name)}: {by_name[name]}" for name in inserted)
            return f"{{{entries}}}" if kind is dict else f"{writer.constant(kind)}({{{entries}}})"
        listed = ", ".join(made)
        if hasattr(kind, "_fields"):
            return f"{writer.constant(kind)}({listed})"
        return f"[{listed}]" if kind is list else f"{writer.constant(kind)}([{listed}])"

    writer.lines.append(f"return {written(structure.spec.node)}")
    return writer.function("def function(x):")
