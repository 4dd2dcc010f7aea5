"""The quick way through a call: the same results as the long way, and no call that isn't alike."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funcnets import jit, models, optim, random, train, tree
from funcnets.compiler import api, fast_call
from funcnets.compiler.graph.structure import take_apart


class Pair(NamedTuple):
    first: object
    second: object


def nodes(parts):
    names = st.text("ab1", max_size=2)
    pairs = st.tuples(parts, parts).map(lambda both: Pair(*both))
    return (
        st.dictionaries(names, parts, max_size=4)
        | st.lists(parts, max_size=3).map(tuple)
        | (st.lists(parts, max_size=2) | pairs)
    )


trees = st.recursive(st.none() | st.builds(lambda: torch.ones(1)), nodes, max_leaves=12)


def state():
    return {"b": torch.ones(3), "a": [torch.zeros(2), None], "c": Pair(torch.ones(1), ())}


def fast_for(args, donated=()):
    tensors, structure = take_apart(([*args], []))
    return fast_call.FastCall(structure, tensors, donated), tensors


@given(trees)
def test_trees_are_taken_apart_and_filled_as_by_their_structure(values):
    tensors, structure = take_apart(values)
    filled = fast_call.filler(structure)(tensors)
    assert tree.flatten(filled)[1] == tree.flatten(values)[1]
    taken = fast_call.taker(take_apart(([values], []))[1])((values,))
    assert [id(x) for x in taken] == [id(x) for x in tensors]


def test_dicts_keep_the_order_of_insertion_and_their_type():
    values = OrderedDict(z=torch.ones(1), a=(torch.ones(2),))
    tensors, structure = take_apart(values)
    filled = fast_call.filler(structure)(tensors)
    assert type(filled) is OrderedDict
    assert list(filled) == ["z", "a"]
    assert [len(x) for x in tensors] == [2, 1]


OTHER = {
    "another shape": lambda s: s | {"b": torch.ones(4)},
    "another dtype": lambda s: s | {"b": torch.ones(3, dtype=torch.float64)},
    "other strides": lambda s: s | {"b": torch.ones(6)[::2]},
    "another device": lambda s: s | {"b": torch.ones(3, device="meta")},
    "a negative view": lambda s: s | {"b": torch.ones(3, dtype=torch.complex64).conj().imag},
    "a number": lambda s: s | {"b": 1.0},
    "a tensor for None": lambda s: s | {"a": [torch.zeros(2), torch.zeros(2)]},
    "a name more": lambda s: s | {"d": torch.ones(3)},
    "another order": lambda s: {"a": s["a"], "b": s["b"], "c": s["c"]},
    "a tuple for a list": lambda s: s | {"a": tuple(s["a"])},
    "a tuple for a named one": lambda s: s | {"c": tuple(s["c"])},
    "a tensor twice": lambda s: s | {"c": Pair(s["b"][:1], ())} | {"b": s["b"]},
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_is_not_alike_is_left_to_the_long_way(change):
    given = state()
    fast, _ = fast_for((given,), donated=(0, 1, 2))
    assert fast.take((given,)) is not None
    assert fast.take((change(given),)) is None
    assert fast.take((change(given),)) is None  # nor at the second sight
    assert fast.take((given,)) is not None
    assert fast.take((given, given)) is None


def test_a_donated_tensor_that_shares_memory_is_never_alike():
    memory = torch.zeros(5)
    fast, _ = fast_for((torch.ones(3), torch.ones(3)), donated=(0,))
    for _ in range(2):
        assert fast.take((memory[:3], memory[2:])) is None
    assert fast.take((memory[:3], torch.ones(3))) is not None
    assert fast.take((memory[:3], memory[2:])) is None


def test_a_tensor_whose_data_were_exchanged_is_looked_at_again():
    """As by `module.half()` and `module.to(...)`, which leave the object and change its data."""
    x, y = torch.ones(3), torch.ones(3)
    fast, _ = fast_for((x, y), donated=(0,))
    y.data = y.data.double()
    assert fast.take((x, y)) is None
    y.data = torch.ones(3)
    assert fast.take((x, y)) is not None
    y.data = x.data
    assert fast.take((x, y)) is None


def test_changed_defaults_and_autocast_are_not_alike():
    x = torch.ones(3)
    fast, _ = fast_for((x,))
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.take((x,)) is None
    assert fast.take((x,)) is not None


def test_a_training_goes_the_quick_way_from_its_second_step(monkeypatch):
    net, _ = models.get("lenet_bn")
    optimizer = optim.sgd(0.1, momentum=0.9)
    images = random.normal(random.key(1), (5, 4, 1, 28, 28), torch.float64)
    labels = torch.arange(4)
    expected = train.create(net, optimizer, random.key(0), images[0])
    actual = tree.map(torch.clone, expected)
    step = train.make_train_step(net, optimizer)
    jitted = jit(step, donate_argnums=0, backend="graph")
    long_ways = []
    take_apart = api.take_call_apart
    monkeypatch.setattr(
        api, "take_call_apart", lambda *call: long_ways.append(1) or take_apart(*call)
    )
    for batch in images:
        expected, _ = step(expected, (batch, labels.clone()))
        actual, _ = jitted(actual, (batch, labels.clone()))
    assert len(long_ways) == 1
    for ours, theirs in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs)
    jitted(actual, (images[0, :3].clone(), labels[:3].clone()))  # a short batch
    assert len(long_ways) == 2
    assert train.TrainState is type(actual)
