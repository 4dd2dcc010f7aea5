"""What a lowering is, and the table of them that a trace consults."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch._ops import OpOverload


@dataclass(frozen=True)
class Lowering:
    """One operation done otherwise.

    Attributes:
        name: what a trace calls it.
        operation: the ATen operation that it replaces.
        applies: whether it does for these arguments; looks at shapes, dtypes and devices alone.
        rewrite: the replacement; takes the operation's arguments and gives its results.
    """

    name: str
    operation: OpOverload
    applies: Callable[..., bool]
    rewrite: Callable[..., Any]


# Is told of each lowering that is used, with the arguments of the operation.
Watch = Callable[[Lowering, tuple[Any, ...], dict[str, Any]], None]


def unwatched(*rewrite: object) -> None:
    """What is told of rewrites and looks away."""


class Recorder:
    """A decomposition table of lowerings, which counts in `fired` those that were used."""

    def __init__(self, lowerings: Iterable[Lowering], watch: Watch = unwatched) -> None:
        self.fired: dict[str, int] = {}
        self._watch = watch
        self._under_way: set[str] = set()
        by_operation: dict[OpOverload, list[Lowering]] = defaultdict(list)
        for lowering in lowerings:
            by_operation[lowering.operation].append(lowering)
        self.table = {
            operation: self._dispatch(candidates) for operation, candidates in by_operation.items()
        }

    def _dispatch(self, candidates: list[Lowering]) -> Callable[..., Any]:
        def rewrite(*args: Any, **kwargs: Any) -> Any:
            for lowering in candidates:
                if lowering.name not in self._under_way and lowering.applies(*args, **kwargs):
                    return self._rewrite(lowering, args, kwargs)
            return NotImplemented

        return rewrite

    def _rewrite(self, lowering: Lowering, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.fired[lowering.name] = self.fired.get(lowering.name, 0) + 1
        self._watch(lowering, args, kwargs)
        self._under_way.add(lowering.name)
        try:
            return lowering.rewrite(*args, **kwargs)
        finally:
            self._under_way.discard(lowering.name)
