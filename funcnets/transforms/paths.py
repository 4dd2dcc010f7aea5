"""Dotted paths of the parts of a network, and patterns of them."""

from collections.abc import Iterable, Iterator

from funcnets import tree
from funcnets.core import Layer


def part_paths(net: Layer) -> list[str]:
    """Return the dotted paths of all named parts of `net`, a part before its own parts.

    >>> from funcnets import layers, sequential
    >>> part_paths(sequential(block=sequential(conv=layers.conv2d(1, 1)), act=layers.relu()))
    ['block', 'block.conv', 'act']
    """
    return list(_paths_below(net, ""))


def _paths_below(layer: Layer, prefix: str) -> Iterator[str]:
    for name, part in layer.children.items():
        yield prefix + name
        yield from _paths_below(part, f"{prefix}{name}.")


def match_parts(net: Layer, patterns: Iterable[str]) -> list[str]:
    """Return the paths of parts of `net` that match one of `patterns`, in the network's order.

    Patterns are those of `tree.matching`.  Raises ValueError for a pattern that no path matches,
    with the nearest paths.
    """
    known = part_paths(net)
    found = {path for pattern in patterns for path in tree.matching(known, pattern, "part")}
    return [path for path in known if path in found]
