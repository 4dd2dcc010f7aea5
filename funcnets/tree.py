"""Trees of tensors: nested dicts, lists, tuples and named tuples whose leaves are tensors.

Leaves come in one canonical order: the entries of a dict by their sorted names, whatever the order
in which they were inserted, and those of lists and tuples by position.  So what is computed leaf by
leaf, or drawn for each leaf, depends on the names alone.  Everything else, None included, is a
leaf.  (`torch.func` goes by the order of insertion; JAX sorts, as here.)

>>> from funcnets import tree
>>> tree.flatten_named({"conv": {"weight": 1, "bias": 2}, "0": (3, 4)})
{'0.0': 3, '0.1': 4, 'conv.bias': 2, 'conv.weight': 1}
"""

import difflib
import importlib
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Structure",
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
    "unflatten",
    "unflatten_named",
]

LEAF = "leaf"  # the node of a leaf


@dataclass(frozen=True, slots=True)
class Structure:
    """A tree without its leaves: hashable, and equal for trees of the same containers and names.

    Attributes:
        node: `LEAF`, or the type of a container with its names and the nodes of its parts.  The
            names of a dict are in the order of insertion, which `unflatten` restores; so trees
            whose dicts differ in that order have different structures, but the same leaves.
        num_leaves: the number of leaves.
    """

    node: Any
    num_leaves: int

    def children(self) -> "list[Structure]":
        """Return the structures of the parts, in the order of their leaves."""
        nodes = () if self.node == LEAF else self.node[2]
        return [Structure(node, _count(node)) for node in nodes]


def _kind(tree: Any) -> type | None:
    """Return the type of container that `tree` is taken for; None for a leaf."""
    kind = type(tree)
    if kind is dict or kind is tuple or kind is list or kind is OrderedDict:
        return kind
    if isinstance(tree, dict):
        return dict
    if isinstance(tree, list):
        return list
    if isinstance(tree, tuple) and (hasattr(kind, "_fields") or hasattr(kind, "n_fields")):
        return kind  # a named tuple, or what torch returns in its place, as from torch.max
    return None


def sorted_names(names: Iterable[Any]) -> tuple[Any, ...]:
    """Return the names of a dict in the canonical order of its parts."""
    try:
        return tuple(sorted(names))
    except TypeError:  # names of several types
        return tuple(sorted(names, key=lambda name: (type(name).__name__, repr(name))))


def _parts(tree: Any) -> Iterator[tuple[str, Any]] | None:
    """Return names and parts of a container in canonical order; None for a leaf."""
    kind = _kind(tree)
    if kind is None:
        return None
    if isinstance(tree, dict):
        return ((str(name), tree[name]) for name in sorted_names(tree))
    fields = getattr(kind, "_fields", None) or itertools.count()
    return ((str(name), part) for name, part in zip(fields, tree, strict=False))


def _flatten(tree: Any, leaves: list[Any]) -> Any:
    """Append the leaves of `tree` to `leaves`, and return its node."""
    kind = _kind(tree)
    if kind is None:
        leaves.append(tree)
        return LEAF
    if isinstance(tree, dict):
        parts = tuple([_flatten(tree[name], leaves) for name in sorted_names(tree)])
        return kind, tuple(tree), parts
    return kind, None, tuple([_flatten(part, leaves) for part in tree])


def _unflatten(node: Any, leaves: Iterator[Any]) -> Any:
    if node == LEAF:
        return next(leaves)
    kind, inserted, parts = node
    values = [_unflatten(part, leaves) for part in parts]
    if inserted is not None:
        by_name = dict(zip(sorted_names(inserted), values, strict=True))
        return kind((name, by_name[name]) for name in inserted)
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def _count(node: Any) -> int:
    return 1 if node == LEAF else sum(_count(part) for part in node[2])


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """Return the leaves of `tree` in order, and its structure, for `unflatten`."""
    leaves: list[Any] = []
    node = _flatten(tree, leaves)
    return leaves, Structure(node, len(leaves))


def unflatten(leaves: Iterable[Any], structure: Structure) -> Any:
    """Return the tree with this structure and these leaves; the inverse of `flatten`.

    Raises ValueError for another number of leaves.
    """
    leaves = list(leaves)
    if len(leaves) != structure.num_leaves:
        raise ValueError(f"got {len(leaves)} leaves; the structure has {structure.num_leaves}")
    return _unflatten(structure.node, iter(leaves))


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of `tree`, in order."""
    return flatten(tree)[0]


def map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `function` to each leaf of `tree`, and to the leaf of the same name in each of `rest`.

    The result has the structure of `tree`.  Raises ValueError that names the first place where a
    tree of `rest` has other names, or another number of parts.
    """
    first, structure = flatten(tree)
    columns = [first, *(_leaves_like(tree, other) for other in rest)]
    return unflatten((function(*row) for row in zip(*columns, strict=True)), structure)


def _leaves_like(tree: Any, other: Any) -> list[Any]:
    """Return the leaves of `other`, which must have the names of `tree`."""
    ours, theirs = flatten(tree)[1].node, flatten(other)[1].node
    if not _is_alike(ours, theirs):
        raise ValueError(_difference(tree, other, ()))
    return leaves(other)


def _is_alike(one: Any, other: Any) -> bool:
    """True if two nodes have the same names, in any order, and numbers of parts."""
    if one == other:
        return True
    if LEAF in (one, other) or (one[1] is None) != (other[1] is None):
        return False
    if one[1] is not None and sorted_names(one[1]) != sorted_names(other[1]):
        return False
    if len(one[2]) != len(other[2]):
        return False
    return all(_is_alike(*pair) for pair in zip(one[2], other[2], strict=True))


def _difference(tree: Any, other: Any, path: tuple[str, ...]) -> str:
    """Describe the first place, under `path`, where two trees have other parts."""
    place = f"`{'.'.join(path)}`" if path else "the tree"
    ours, theirs = (None if each is None else dict(each) for each in (_parts(tree), _parts(other)))
    if ours is None or theirs is None:
        described = ["a leaf" if each is None else "a node with parts" for each in (ours, theirs)]
        return f"{place} is {described[0]} in the first tree, but {described[1]} in another"
    if ours.keys() != theirs.keys():
        missing = [name for name in ours if name not in theirs]
        other_names = [name for name in theirs if name not in ours]
        found = f"no key {listed(missing)}" if missing else f"a key {listed(other_names)} more"
        return f"{place} has in another tree {found}: give trees with the same names"
    return next(
        _difference(part, theirs[name], (*path, name))
        for name, part in ours.items()
        if not _is_alike(flatten(part)[1].node, flatten(theirs[name])[1].node)
    )


def names(tree: Any) -> list[str]:
    """Return the dotted name of each leaf of `tree`, in order."""
    found: list[str] = []

    def walk(tree: Any, path: str) -> None:
        parts = _parts(tree)
        if parts is None:
            found.append(path)
            return
        for name, part in parts:
            walk(part, f"{path}.{name}" if path else name)

    walk(tree, "")
    return found


def flatten_named(tree: Any) -> dict[str, Any]:
    """Return the leaves by dotted name, such as `stage1.conv.weight`, in order."""
    return dict(zip(names(tree), leaves(tree), strict=True))


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """As `map`, with the leaf's dotted name as the function's first argument."""
    structure = flatten(tree)[1]
    return map(function, unflatten(names(tree), structure), tree, *rest)


def unflatten_named(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts with these leaves; the inverse of `flatten_named` for trees of dicts.

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
    """Return those of `names` that match a shell pattern, in order: `stage1.*` is all below stage1.

    `*` matches dots too.  Raises ValueError where none matches, and names the nearest;
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
    """Return the first `most` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def transpose(trees: Iterable[Any]) -> Any:
    """Return trees of one structure stacked into one, each leaf with a new first axis."""
    first, *rest = trees
    return map(lambda *leaf: torch.stack(leaf), first, *rest)


def difference(tree: Any, like: Any) -> tuple[str, str, str] | None:
    """Return the name of the first leaf in which two trees differ, and its description in either.

    Names, shapes, dtypes and devices are compared; None if all are the same.
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
    """Return the number of elements in all leaves of `tree`."""
    return sum(leaf.numel() for leaf in leaves(tree) if isinstance(leaf, Tensor))


def to_json(structure: Structure) -> Any:
    """Return a structure as lists and strings, for `from_json`.

    Raises ValueError for names that are no strings, and for named tuples that can't be imported.
    """
    return _to_json(structure.node)


def _to_json(node: Any) -> Any:
    if node == LEAF:
        return node
    kind, inserted, parts = node
    below = [_to_json(part) for part in parts]
    if inserted is not None:
        if not all(isinstance(name, str) for name in inserted):
            raise ValueError(f"names that are no strings: {inserted}")
        return [kind.__name__, list(inserted), below]
    if kind in (list, tuple):
        return [kind.__name__, None, below]
    if not hasattr(kind, "_fields") or _imported(kind.__module__, kind.__qualname__) is not kind:
        raise ValueError(f"{kind!r} is no named tuple of a module")
    return [f"{kind.__module__}:{kind.__qualname__}", list(kind._fields), below]


_CONTAINERS: dict[str, type] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "list": list,
    "tuple": tuple,
}


def from_json(data: Any) -> Structure:
    """Return the structure that `to_json` gave; raises ValueError for other data.

    A module of a named tuple is imported only if it belongs to this package or was imported before.
    """
    node = _from_json(data)
    return Structure(node, _count(node))


def _from_json(data: Any) -> Any:
    if data == LEAF:
        return LEAF
    if not (isinstance(data, list) and len(data) == 3 and isinstance(data[2], list)):
        raise ValueError(f"no structure of a tree: {data!r}")
    name, names, below = data
    parts = tuple(_from_json(part) for part in below)
    kind = _CONTAINERS.get(name) or _imported(*str(name).partition(":")[::2])
    is_dict = isinstance(kind, type) and issubclass(kind, dict)
    fields = None if is_dict else getattr(kind, "_fields", None)
    is_known = kind in _CONTAINERS.values() or (fields is not None and list(fields) == names)
    if not is_known or (names is not None and len(names) != len(parts)):
        raise ValueError(f"no structure of a tree: {name!r} with {names!r}")
    return kind, tuple(names) if is_dict else None, parts


def _imported(module: str, name: str) -> Any:
    """Return the class of this name in a module; None if it isn't there."""
    found: Any = sys.modules.get(module)
    if found is None and module.startswith(f"{__package__}."):
        found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
