"""The parts of a network by dotted path: which there are, and which a pattern means."""

from collections.abc import Iterable, Iterator

from funcnets import tree
from funcnets.core import Layer


def paths(net: Layer) -> list[str]:
    """The dotted names of all parts of `net`, a part before its own parts."""
    return list(_below(net, ""))


def _below(layer: Layer, prefix: str) -> Iterator[str]:
    for name, part in layer.children.items():
        yield prefix + name
        yield from _below(part, f"{prefix}{name}.")


def match(net: Layer, patterns: Iterable[str]) -> list[str]:
    """The paths of `net` that match one of `patterns`, as `tree.matching` does, in its order.

    Raises ValueError for a pattern that no path matches, and names the nearest.
    """
    known = paths(net)
    found = {path for pattern in patterns for path in tree.matching(known, pattern, "part")}
    return [path for path in known if path in found]
