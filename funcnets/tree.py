"""Trees of tensors: nested dicts, tuples and named tuples whose leaves are tensors.

The only file that knows which pytree library is underneath.  It is torch's own, because
`torch.func` and `make_fx` flatten with it, so the two can never disagree about a structure.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

type_spec = _pytree.TreeSpec

__all__ = [
    "count",
    "difference",
    "flatten",
    "flatten_named",
    "leaves",
    "listed",
    "map",
    "map_named",
    "matching",
    "names",
    "transpose",
    "type_spec",
    "unflatten",
    "unflatten_named",
    "widths",
]


def flatten(tree: Any) -> tuple[list[Any], _pytree.TreeSpec]:
    """Leaves of `tree` in order, and its structure, from which `unflatten` rebuilds it."""
    return _pytree.tree_flatten(tree)


def unflatten(leaves: Iterable[Any], structure: _pytree.TreeSpec) -> Any:
    """The tree of the given structure with the given leaves; the inverse of `flatten`."""
    return _pytree.tree_unflatten(list(leaves), structure)


def leaves(tree: Any) -> list[Any]:
    """The leaves of `tree`, in order."""
    return _pytree.tree_leaves(tree)


def widths(structure: _pytree.TreeSpec) -> list[int]:
    """How many leaves each child of a structure has, in order."""
    return [child.num_leaves for child in structure.children()]


def map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `function` to each leaf of `tree` (and the leaf at the same place in each of `rest`).

    Raises ValueError where a tree of `rest` has another structure.
    """
    first, structure = flatten(tree)
    columns = [first, *(structure.flatten_up_to(other) for other in rest)]
    for leaf in (leaf for column in columns[1:] for leaf in column):
        if not _pytree.tree_structure(leaf).is_leaf():
            raise ValueError(f"Node of type {type(leaf).__name__} where the first tree has a leaf")
    return unflatten((function(*leaf) for leaf in zip(*columns, strict=True)), structure)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(_entry(entry) for entry in path)


def _entry(entry: Any) -> str:
    match entry:
        case _pytree.MappingKey(key=key):
            return str(key)
        case _pytree.SequenceKey(idx=position):
            return str(position)
        case _pytree.GetAttrKey(name=name):
            return str(name)
    raise TypeError(f"a tree of dicts, tuples and named tuples was expected, got a {entry!r}")


def flatten_named(tree: Any) -> dict[str, Any]:
    """Leaves by dotted name: `tree["stage1"]["conv"]["weight"]` is `stage1.conv.weight`."""
    return {_name(path): leaf for path, leaf in _pytree.tree_flatten_with_path(tree)[0]}


def names(tree: Any) -> list[str]:
    """The dotted names of the leaves of `tree`, in order, one for each leaf."""
    return [_name(path) for path, _ in _pytree.tree_flatten_with_path(tree)[0]]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """As `map`, with the leaf's dotted name as the function's first argument."""
    structure = flatten(tree)[1]
    return map(function, unflatten(names(tree), structure), tree, *rest)


def unflatten_named(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from dotted names; the inverse of `flatten_named` for trees of dicts.

    Raises ValueError where one name is both a leaf and the beginning of another.
    """
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name}: a part of this name is the name of a leaf as well")
        if last in node:
            raise ValueError(f"{name}: this name is given twice, as a leaf and as a part")
        node[last] = leaf
    return tree


def matching(names: Sequence[str], pattern: str, what: str = "leaf") -> list[str]:
    """Those of `names` that match the shell's `pattern`, in order: `stage1.*` is all below stage1.

    `*` goes through dots as well.  Raises ValueError where none matches, and names the nearest;
    `what` is what the names are of.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if found:
        return found
    parts = {name[:end]: None for name in names for end, mark in enumerate(name) if mark == "."}
    near = difflib.get_close_matches(pattern, [*(f"{part}.*" for part in parts), *names], n=3)
    known = f"near it: {listed(near)}" if near else f"there are {listed(names, 4) or 'none'}"
    raise ValueError(f"the pattern `{pattern}` matches no {what}; {known}")


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first names with commas between them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def transpose(trees: Iterable[Any]) -> Any:
    """Trees of one structure stacked into one tree, each leaf with a new first axis."""
    first, *rest = trees
    return map(lambda *leaf: torch.stack(leaf), first, *rest)


def difference(tree: Any, like: Any) -> tuple[str, str, str] | None:
    """The first leaf in which two trees differ: its name, and what is there in either.

    Compared are names, shapes, dtypes and devices; None where all are the same.
    """
    ours, theirs = flatten_named(tree), flatten_named(like)
    for name in sorted(ours.keys() ^ theirs.keys()) or theirs:
        here, there = (_described(named.get(name)) for named in (ours, theirs))
        if here != there:
            return name, here, there
    return None


def _described(leaf: Tensor | None) -> str:
    return "missing" if leaf is None else f"{leaf.dtype} {tuple(leaf.shape)} on {leaf.device}"


def count(tree: Any) -> int:
    """The number of elements in all leaves of `tree`."""
    return sum(leaf.numel() for leaf in leaves(tree) if isinstance(leaf, Tensor))
