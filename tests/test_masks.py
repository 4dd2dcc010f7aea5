"""Optimizers for parts of the parameters: each part is trained as if it were alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import models, optim, random, train, transforms, tree
from funcnets.testing import assert_close

NAMES = [f"{part}.{leaf}" for part in ("stem", "stage1.conv", "stage2.conv") for leaf in "ab"]


def trees(seed, number):
    keys = random.split(random.key(seed), number * len(NAMES)).reshape(number, len(NAMES), 2)
    return [
        tree.unflatten_named(
            {
                name: random.normal(k, (3,), torch.float64)
                for name, k in zip(NAMES, row, strict=True)
            }
        )
        for row in keys
    ]


def trained(optimizer, params, grads):
    opt_state = optimizer.init(params)
    for grad in grads:
        updates, opt_state = optimizer.update(grad, opt_state, params)
        params = optim.apply_updates(params, updates)
    return params


def only(values, names):
    return {name: leaf for name, leaf in tree.flatten_named(values).items() if name in names}


OPTIMIZERS = [optim.sgd(0.1, 0.9), optim.adam(0.2), optim.sgd(optim.linear(0.3, 3)), optim.frozen()]


@given(
    owners=st.lists(st.integers(0, 3), min_size=len(NAMES), max_size=len(NAMES)),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_each_part_is_trained_as_if_it_were_alone(owners, seed):
    params, *grads = trees(seed, 4)
    rules = {name: OPTIMIZERS[owner] for name, owner in zip(NAMES, owners, strict=True)}
    actual = tree.flatten_named(trained(optim.partition(rules), params, grads))
    for name, optimizer in rules.items():
        part, *part_grads = (only(values, [name]) for values in (params, *grads))
        assert_close(only(actual, [name]), trained(optimizer, part, part_grads), 0.0)


def test_a_leaf_goes_to_the_first_pattern():
    params, *grads = trees(0, 3)
    rules = {"stage1.*": optim.frozen(), "*.b": optim.sgd(1.0), "*": optim.sgd(0.0)}
    updates, _ = optim.partition(rules).update(*_started(rules, grads[0], params))
    changed = {name for name, leaf in tree.flatten_named(updates).items() if leaf.any()}
    assert changed == {"stem.b", "stage2.conv.b"}


def _started(rules, grads, params):
    return grads, optim.partition(rules).init(params), params


def test_what_is_frozen_has_no_state_and_no_gradient_in_the_graph():
    net, _ = models.get("lenet_bn")
    rules = {"conv*": optim.frozen(), "bn1.*": optim.frozen(), "*": optim.sgd(0.1, 0.9)}
    x, labels = random.uniform(random.key(1), (4, 1, 28, 28)), torch.arange(4)
    convolutions = []
    for optimizer in (optim.sgd(0.1, 0.9), optim.partition(rules)):
        train_state = train.create(net, optimizer, random.key(0), x)
        step = funcnets.jit(train.make_train_step(net, optimizer), backend="graph", lowerings=None)
        after, _ = step(train_state, (x, labels))
        code = step.trace(train_state, (x, labels)).graph.code
        convolutions.append(code.count("aten.convolution_backward"))
    names = tree.names(train_state.opt_state)
    assert names
    assert not any("conv" in name.split("trace.")[1] or "bn1" in name for name in names)
    assert torch.equal(after.params["conv2"]["weight"], train_state.params["conv2"]["weight"])
    assert not torch.equal(after.params["fc1"]["weight"], train_state.params["fc1"]["weight"])
    assert convolutions[1] < convolutions[0]


def test_masked_leaves_pass_through_the_rest():
    params, grads = trees(1, 2)
    decayed = optim.masked(optim.add_decayed_weights(0.5), "*.a")
    updates, opt_state = decayed.update(grads, decayed.init(params), params)
    expected = tree.map_named(lambda name, g, p: g + 0.5 * p * name.endswith("a"), grads, params)
    assert_close(tree.flatten_named(updates), tree.flatten_named(expected), 0.0)
    assert opt_state == ()


def test_a_mask_is_a_tree_of_its_parameters():
    (params,) = trees(2, 1)
    chosen = tree.flatten_named(optim.mask(params, "stage?.*.a", "stem.*"))
    assert [name for name in chosen if chosen[name]] == [
        *("stage1.conv.a", "stage2.conv.a", "stem.a", "stem.b")
    ]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["stag1.*", "*"], r"`stag1.\*` matches no parameter; near it: .*stage1.\*"),
        (["stem", "*"], r"`stem` matches no parameter; near it: .*stem.\*"),
        (["xyz", "*"], r"`xyz` matches no parameter; there are stage1.conv.a, .* and 2 more"),
        (["*", "stem.*"], r"`stem.\*` comes too late"),
        (["stem.*", "stage1.*"], r"no pattern matches stage2.conv.a, .*: add one"),
    ],
)
def test_patterns_that_do_not_divide_the_parameters_are_refused(patterns, message):
    (params,) = trees(3, 1)
    optimizer = optim.partition(dict.fromkeys(patterns, optim.sgd(0.1)))
    with pytest.raises(ValueError, match=message):
        optimizer.init(params)


def test_a_mask_that_matches_nothing_and_a_state_of_another_are_refused():
    params, grads = trees(4, 2)
    with pytest.raises(ValueError, match=r"near it: stem.\*"):
        optim.masked(optim.sgd(0.1), "stm.*").init(params)
    one, other = (optim.partition({p: optim.sgd(0.1)}) for p in ("*", "s*"))
    with pytest.raises(ValueError, match=r"has parts \*; expected s\*: pass"):
        other.update(grads, one.init(params), params)


WHOLE = {
    "sgd": optim.sgd(0.1),
    "adam": optim.adam(optim.linear(0.1, 9)),
    "chain": optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1, 0.9)),
    "masked": optim.masked(optim.sgd(0.1), "*"),
    "partition": optim.partition({"stem.*": optim.sgd(0.1), "*": optim.frozen()}),
    "rated": transforms.ensemble.rated(optim.sgd, 0.1),
}
PARTS = {
    "decay": optim.add_decayed_weights(0.5),
    "clip": optim.clip_by_global_norm(1.0),
    "momentum": optim.chain(optim.add_momentum(0.9)),
}


@pytest.mark.parametrize("name", [*WHOLE, *PARTS])
def test_what_is_masked_out_is_not_changed_by_a_whole_optimizer(name):
    """A gradient transformation passes the gradients on, for the next part of a chain."""
    params, grads = trees(1, 2)
    optimizer = optim.masked((WHOLE | PARTS)[name], "*.a")
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for path, update in tree.flatten_named(updates).items():
        if not path.endswith(".a"):
            gradient = tree.flatten_named(grads)[path]
            assert torch.equal(update, torch.zeros_like(update) if name in WHOLE else gradient)


def test_a_mask_needs_patterns_and_an_optimizer():
    with pytest.raises(ValueError, match="masked: no pattern is given"):
        optim.masked(optim.sgd(0.1))
    with pytest.raises(TypeError, match=r"masked: a pattern is \['w'\]; expected strings"):
        optim.masked(optim.sgd(0.1), ["w"])
    with pytest.raises(TypeError, match="masked: the first argument is <function sgd"):
        optim.masked(optim.sgd, "w")
