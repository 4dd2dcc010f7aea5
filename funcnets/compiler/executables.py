"""The graphs of a jitted function: a bounded number, of which the one unused longest goes first."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
MAX_KINDS = 128  # of call whose graphs are kept
MANY_KINDS = 32  # of call after which a function that is traced once more is warned of


class Executables(Generic[T]):
    """The compiled graphs for kinds of call of one function, the last used `MAX_KINDS` of them.

    Args:
        name: of the function, for the warning.
    """

    def __init__(self, name: str) -> None:
        self._name, self._made = name, 0
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def values(self) -> list[T]:
        """Return what is kept, in the order of its last use."""
        return list(self._kept.values())

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept for a kind of call; make it if there is none.

        Warns once, where a function is traced for more than `MANY_KINDS` kinds of call.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = make()
        self._made += 1
        if len(self._kept) > MAX_KINDS:
            self._kept.popitem(last=False)
        if self._made == MANY_KINDS + 1:
            warnings.warn(
                f"jit: {self._name} was traced {self._made} times, as its calls differ in shapes, "
                "dtypes, strides or static arguments, and each trace takes a second or more: give "
                "it batches of one shape (drop or pad the last one), and numbers as tensors",
                stacklevel=3,
            )
        return made
