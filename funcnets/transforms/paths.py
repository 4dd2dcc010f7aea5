"""The parts of a network by dotted path: which there are, and which a pattern means."""

import difflib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from funcnets.core import Layer


def paths(net: Layer) -> list[str]:
    """The dotted names of all parts of `net`, a part before its own parts."""
    return list(_below(net, ""))


def _below(layer: Layer, prefix: str) -> Iterator[str]:
    for name, part in layer.children.items():
        yield prefix + name
        yield from _below(part, f"{prefix}{name}.")


def match(net: Layer, patterns: Iterable[str]) -> list[str]:
    """The paths of `net` that match one of `patterns`, such as `stage1.*`, in its order.

    A pattern is that of `fnmatch`, whose `*` goes through dots as well.
    Raises ValueError for a pattern that no path matches, and names the nearest path.
    """
    known, patterns = paths(net), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in known):
            close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
            hint = f"did you mean {close[0]!r}?" if close else "it has no named parts"
            raise ValueError(f"no part of the network is called {pattern!r}: {hint}")
    return [path for path in known if any(fnmatchcase(path, pattern) for pattern in patterns)]
