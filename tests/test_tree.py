"""Trees of tensors: their leaves, names and structures."""

import json
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from funcnets import tree

names = st.text("abc_1", min_size=1, max_size=3)
trees = st.recursive(
    st.integers(), lambda below: st.dictionaries(names, below, min_size=1, max_size=3), max_leaves=9
).filter(lambda drawn: isinstance(drawn, dict))


class Pair(NamedTuple):
    left: Any
    right: Any


def walked(values: Any, *path: str) -> dict[str, Any]:
    """Leaves by name, the obvious way, in the order of names."""
    if not isinstance(values, dict):
        return {".".join(path): values}
    return {k: v for key in sorted(values) for k, v in walked(values[key], *path, key).items()}


def turned(values: Any) -> Any:
    """The same tree with the names of every dict inserted in the reverse order."""
    if not isinstance(values, dict):
        return values
    return {name: turned(part) for name, part in reversed(values.items())}


@given(trees)
def test_names_are_paths(values: Any) -> None:
    assert tree.flatten_named(values) == walked(values)
    assert tree.names(values) == list(tree.flatten_named(values))
    assert tree.leaves(values) == list(tree.flatten_named(values).values())


@given(trees)
def test_unflattening_undoes_flattening(values: Any) -> None:
    leaves, structure = tree.flatten(values)
    assert tree.unflatten(leaves, structure) == values
    assert tree.unflatten_named(tree.flatten_named(values)) == values


@given(trees)
def test_map_goes_leaf_by_leaf(values: Any) -> None:
    doubled = tree.map(lambda leaf, other: leaf + other, values, values)
    assert walked(doubled) == {name: 2 * leaf for name, leaf in walked(values).items()}
    named = tree.map_named(lambda name, leaf, other: (name, leaf - other), values, values)
    assert walked(named) == {name: (name, 0) for name in walked(values)}


@given(trees, trees)
@example({"a": 0}, {"a": {"b": 0}})
def test_map_refuses_another_structure(values: Any, others: Any) -> None:
    if walked(values).keys() == walked(others).keys():
        return
    with pytest.raises(ValueError, match=r"a node with parts|no key|a key .* more"):
        tree.map(lambda leaf, other: leaf, values, others)


def test_map_pairs_by_name_and_not_by_order() -> None:
    pairs = tree.map(lambda a, b: (a, b), {"x": 1, "y": 2}, {"y": 20, "x": 10})
    assert pairs == {"x": (1, 10), "y": (2, 20)}


def test_tuples_and_named_tuples_have_names_too() -> None:
    values = Pair({"w": 1}, (2, [3]))
    assert tree.flatten_named(values) == {"left.w": 1, "right.0": 2, "right.1.0": 3}
    leaves, structure = tree.flatten(values)
    assert tree.unflatten(leaves, structure) == values
    assert type(tree.map(str, values)) is Pair


@pytest.mark.parametrize("named", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a.b": 1, "a.b.c": 2}])
def test_a_name_is_a_leaf_or_a_part(named: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^a(\.\w)*: "):
        tree.unflatten_named(named)


def test_nothing_shares_the_containers_that_were_given() -> None:
    values = {"a": {"b": 1}}
    mapped = tree.map(lambda leaf: leaf, values)
    mapped["a"]["b"] = 2
    assert values == {"a": {"b": 1}}


def test_transpose_stacks_leaves() -> None:
    stacked = tree.transpose({"a": torch.tensor([i, 10 * i])} for i in range(3))
    assert torch.equal(stacked["a"], torch.tensor([[0, 0], [1, 10], [2, 20]]))


def test_count_adds_elements() -> None:
    values = {"a": torch.zeros(2, 3), "b": {"c": torch.zeros(()), "d": torch.zeros(0)}}
    assert tree.count(values) == 7
    assert tree.count({}) == 0


def test_an_empty_tree_has_no_leaves() -> None:
    assert tree.leaves({}) == []
    assert tree.flatten_named({"a": {}}) == {}
    assert tree.unflatten_named({}) == {}
    assert tree.map(Tensor.clone, {"a": {}}) == {"a": {}}


def test_structures_tell_the_leaves_of_each_part() -> None:
    _, structure = tree.flatten(([{"a": 1, "b": None}, 3, ()], {"k": 2}))
    assert [part.num_leaves for part in structure.children()] == [3, 1]
    assert [part.num_leaves for part in structure.children()[0].children()] == [2, 1, 0]


@given(trees)
def test_leaves_do_not_depend_on_the_order_of_insertion(values: Any) -> None:
    other = turned(values)
    assert tree.leaves(other) == tree.leaves(values)
    assert tree.names(other) == tree.names(values)
    leaves, structure = tree.flatten(other)
    assert str(tree.unflatten(leaves, structure)) == str(other)  # in its own order
    assert str(tree.map(lambda a, b: a, other, values)) == str(other)
    assert (structure == tree.flatten(values)[1]) == (str(other) == str(values))


@given(trees)
def test_a_structure_goes_through_json(values: Any) -> None:
    both = Pair(values, [None, (values, OrderedDict(b=1, a=2))])
    leaves, structure = tree.flatten(both)
    read = tree.from_json(json.loads(json.dumps(tree.to_json(structure))))
    assert read == structure
    assert hash(read) == hash(structure)
    assert str(tree.unflatten(leaves, read)) == str(both)


@pytest.mark.parametrize(
    "data",
    [
        1,
        ["dict", ["a"], []],
        ["os:system", None, []],
        ["no_such_module:Pair", ["left"], ["leaf"]],
        [f"{__name__}:Pair", ["other", "names"], ["leaf", "leaf"]],
        ["tuple", None, "leaf"],
    ],
)
def test_what_is_no_structure_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="no structure of a tree"):
        tree.from_json(data)


def test_a_structure_that_json_cannot_hold_is_refused() -> None:
    class Local(NamedTuple):
        part: Any

    for values in ({1: 2}, Local(1)):
        with pytest.raises(ValueError, match=r"no strings|no named tuple of a module"):
            tree.to_json(tree.flatten(values)[1])


def test_names_of_several_types_have_an_order() -> None:
    values = {1: "a", "b": "c", (2, 3): "d"}
    assert tree.leaves(values) == tree.leaves(dict(reversed(values.items())))
    assert tree.unflatten(*tree.flatten(values)) == values


def test_what_torch_returns_is_a_tree() -> None:
    most = torch.max(torch.tensor([[1, 3, 2]]), 1)
    assert [int(leaf) for leaf in tree.leaves(most)] == [3, 1]
    assert type(tree.map(lambda leaf: leaf + 1, most)) is type(most)


def test_another_number_of_leaves_is_refused() -> None:
    _, structure = tree.flatten((1, 2))
    with pytest.raises(ValueError, match="got 3 leaves; the structure has 2"):
        tree.unflatten([1, 2, 3], structure)


def test_a_difference_is_named() -> None:
    first = {"fc": {"weight": 1, "bias": 2}}
    with pytest.raises(ValueError, match="`fc` has in another tree no key bias: give trees"):
        tree.map(max, first, {"fc": {"weight": 1}})
    with pytest.raises(ValueError, match=r"`fc\.weight` is a leaf in the first tree, but a node"):
        tree.map(max, first, {"fc": {"weight": {"x": 1}, "bias": 2}})
