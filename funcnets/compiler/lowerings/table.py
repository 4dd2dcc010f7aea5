"""Lowering, and the decomposition table of lowerings that a trace consults."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from funcnets._torch import OpOverload


def _begin_nothing(*arguments: Any, **options: Any) -> None:
    """Begin no compilation: the rewrite has no kernel of its own."""


@dataclass(frozen=True)
class Lowering:
    """Rule that replaces one ATen operation by other operations while a graph is traced.

    All three functions take the arguments of the operation.

    Attributes:
        name: its name in a trace.
        operation: the ATen operation that it replaces.
        applies: returns True if it is to be replaced; decides by shapes, strides, dtypes, devices
            and the processor, and has no side effect.
        rewrite: returns the results of the operation.
        prepare: begins to compile the kernels of the rewrite in the background; called before it.
    """

    name: str
    operation: OpOverload
    applies: Callable[..., bool]
    rewrite: Callable[..., Any]
    prepare: Callable[..., object] = _begin_nothing

    @property
    def condition(self) -> str:
        """Condition in words, from the first line of the docstring of `applies`; empty without."""
        first, *_ = (self.applies.__doc__ or "").strip().splitlines() or [""]
        return first.removeprefix("True if ").removesuffix(".")


# Callback that is told of each lowering that is used, with the arguments of the operation.
Watch = Callable[[Lowering, tuple[Any, ...], dict[str, Any]], None]


def unwatched(*rewrite: object) -> None:
    """Watch callback that does nothing."""


class Recorder:
    """Decomposition table of lowerings that counts in `fired` how often each was used."""

    def __init__(self, lowerings: Iterable[Lowering], watch: Watch = unwatched) -> None:
        self.fired: dict[str, int] = {}
        self._watch = watch
        self._active: set[str] = set()
        by_operation: dict[OpOverload, list[Lowering]] = defaultdict(list)
        for lowering in lowerings:
            by_operation[lowering.operation].append(lowering)
        self.table = {
            operation: self._dispatch(candidates) for operation, candidates in by_operation.items()
        }

    def _dispatch(self, candidates: list[Lowering]) -> Callable[..., Any]:
        def decomposition(*args: Any, **kwargs: Any) -> Any:
            for lowering in candidates:
                if lowering.name not in self._active and lowering.applies(*args, **kwargs):
                    return self._rewrite(lowering, args, kwargs)
            return NotImplemented

        return decomposition

    def _rewrite(self, lowering: Lowering, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.fired[lowering.name] = self.fired.get(lowering.name, 0) + 1
        self._watch(lowering, args, kwargs)
        lowering.prepare(*args, **kwargs)
        self._active.add(lowering.name)
        try:
            return lowering.rewrite(*args, **kwargs)
        finally:
            self._active.discard(lowering.name)
