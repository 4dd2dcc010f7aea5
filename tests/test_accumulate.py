"""Gradients by micro-batches are those of the whole batch, batch norm and dropout included."""

import pytest
import torch
from classifiers import NET, gradients, problem, whole
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import layers, losses, optim, random, train, transforms, tree
from funcnets.core import LayerError
from funcnets.testing import assert_close, random_like, strategies


@given(drawn=strategies.layers(classes=3), size=st.integers(1, 5), seed=strategies.seeds)
@settings(max_examples=8)
def test_accumulated_is_the_whole_batch(drawn, size, seed):
    given = problem(drawn.layer(), drawn.shape, seed)
    assert_close(gradients(transforms.accumulate(size), given), whole(given))


@pytest.mark.parametrize("size", [1, 2, 4, 7, 9])
def test_the_last_micro_batch_may_be_smaller(size):
    given = problem(shape=(7, 1, 5, 4))
    assert_close(gradients(transforms.accumulate(size), given), whole(given), 1e-12)


def test_steps_under_jit_are_those_of_the_whole_batch():
    norm = layers.batch_norm
    net = funcnets.sequential(
        norm0=norm(),
        conv=layers.conv2d(2, 3),
        norm1=norm(),
        dropout=layers.dropout(0.25),
        **_head(),
    )
    optimizer, batch = optim.sgd(0.5, momentum=0.5), problem().batch
    start = train.create(net, optimizer, random.key(0), batch[0])
    step = train.make_train_step(net, optimizer)
    parts = train.make_train_step(net, optimizer, gradient=transforms.accumulate(3))
    jitted = funcnets.jit(parts, donate_argnums=0, backend="graph")
    expected, actual = start, tree.map(torch.clone, start)
    for _ in range(3):
        expected, measured = step(expected, batch)
        actual, same = jitted(actual, batch)
        names = [
            tree.flatten_named(tuple(values)) for values in ((actual, same), (expected, measured))
        ]
        assert_close(*names)
    assert not torch.equal(expected.params["conv"]["weight"], start.params["conv"]["weight"])


@given(drawn=strategies.layers(classes=3), size=st.integers(1, 3), seed=strategies.seeds)
@settings(max_examples=3)
def test_its_derivatives_are_those_of_the_whole_batch(drawn, size, seed):
    """jvp of the gradients (a Hessian product), which goes through the statistics as well."""
    given = problem(drawn.layer(), drawn.shape, seed)
    tangent = random_like(given.params, seed)

    def along(gradient):
        return torch.func.jvp(lambda p: gradients(gradient, given, p), (given.params,), (tangent,))

    for actual, expected in zip(
        along(transforms.accumulate(size)), along(train.batch_gradient), strict=True
    ):
        del actual["correct"], expected["correct"]
        assert_close(actual, expected)


def test_vmap_over_members_is_a_loop_over_them():
    given = problem()
    members = [given.params, random_like(given.params, 1)]

    def accumulated(params):
        return gradients(transforms.accumulate(2), given, params)

    actual = torch.func.vmap(accumulated)(tree.transpose(members))
    assert_close(actual, tree.transpose([whole(given, params) for params in members]))


def test_a_micro_batch_with_its_own_statistics_is_a_batch():
    net = funcnets.sequential(conv=NET.children["conv1"], bn=layers.batch_norm(), **_head())
    given = problem(net)
    actual = gradients(transforms.accumulate(2, statistics="micro_batch"), given)
    images, labels = given.batch
    state, total = given.state, None
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        batch, share = (images[part], labels[part]), len(labels[part]) / 5
        grads, state, measured = train.batch_gradient(
            net, losses.cross_entropy, given.params, state, batch
        )
        part_values = tree.flatten_named({"grads": grads, "loss": measured["loss"]})
        weighted = tree.map(lambda leaf, share=share: share * leaf, part_values)
        total = weighted if total is None else tree.map(torch.add, total, weighted)
    expected = total | tree.flatten_named({"state": state}) | {"correct": actual["correct"]}
    assert_close(actual, expected)
    assert (actual["grads.conv.weight"] - whole(given)["grads.conv.weight"]).abs().max() > 1e-3


def _head():
    return {"tanh": layers.tanh(), "flatten": layers.flatten(), "fc": layers.linear(3)}


def _graph(batch_norms, size):
    """The graph of accumulated gradients of a chain of convolutions and batch norms."""
    parts = {
        name: layer
        for i in range(batch_norms)
        for name, layer in ((f"conv{i}", layers.conv2d(2, 1)), (f"bn{i}", layers.batch_norm()))
    }
    given = problem(funcnets.sequential(**parts, **_head()), shape=(6, 2, 3, 3))

    def accumulated(params, state, batch):
        return transforms.accumulate(size)(given.net, losses.cross_entropy, params, state, batch)

    traced = funcnets.jit(accumulated, lowerings=None).trace(given.params, given.state, given.batch)
    return list(traced.graph.graph.nodes)


@pytest.mark.parametrize("batch_norms", [1, 3])
def test_it_costs_what_the_documentation_says(batch_norms):
    targets = [str(node.target) for node in _graph(batch_norms, 3)]
    one_pass = 2 * batch_norms  # two micro-batches, a convolution before each batch norm
    forward, backward = (
        targets.count(f"aten.{name}.default") / one_pass
        for name in ("convolution", "convolution_backward")
    )
    assert (forward, backward) == ((3 * batch_norms + 3) / 2, (batch_norms + 1) / 2)


def test_nothing_but_the_inputs_is_as_large_as_the_batch():
    shapes = [
        tuple(node.meta["val"].shape)
        for node in _graph(2, 2)
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    assert max(shape[0] for shape in shapes if len(shape) == 4) == 2
    assert all(shape[:1] != (6,) for shape in shapes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.accumulate(0), "micro_batch_size is 0; expected 1 or more"),
        (
            lambda: transforms.accumulate(2, statistics="all"),
            "'all'; expected batch or micro_batch",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_that_is_too_small_is_refused_by_name():
    given = problem(shape=(2, 1, 5, 4))
    images, labels = given.batch
    one = given._replace(batch=(images[:1], labels[:1]))
    with pytest.raises(LayerError, match=r"^bn2: .*one value per channel"):
        gradients(transforms.accumulate(1), one)
    gradients(transforms.accumulate(1), given)
