"""A gradient for each example equals a loop over the examples, in every meaning of batch norm."""

from functools import partial

import pytest
import torch
from classifiers import NET, one_by_one, problem, whole
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import core, layers, losses, optim, random, train, transforms, tree
from funcnets.core import LayerError
from funcnets.testing import assert_close, random_like, strategies

MEANINGS = ["frozen", "batch_constant", "batch"]
each_meaning = pytest.mark.parametrize("statistics", MEANINGS)
# What is constant for the gradient needn't be for what is done with the gradient.
each_smooth_meaning = pytest.mark.parametrize("statistics", ["frozen", "batch"])


def detached(name, layer):
    """The batch norm that trains with the batch's statistics, through which no gradient goes."""
    tag = layer.tag(layers.BatchStatistics)
    if tag is None:
        return layer

    def around(inner):
        def apply(params, state, x, *, train=False, key=None):
            moments = layers.channel_statistics(x.detach())
            return inner(params, tag.as_state(*moments), x)[0], state

        return apply

    return core.wrap(layer, around)


def in_evaluation(name, layer):
    """The batch norm that is in evaluation always."""
    if not layer.kind.startswith("batch_norm"):
        return layer
    return core.wrap(layer, lambda inner: lambda p, s, x, train=False, key=None: inner(p, s, x))


def slow(problem, statistics, params=None):
    """The definition: each example's loss in the whole batch, differentiated in a loop."""
    rewritten = {
        "frozen": core.rewrite(problem.net, in_evaluation),
        "batch_constant": core.rewrite(problem.net, detached),
        "batch": problem.net,
    }[statistics]
    gradients, values = one_by_one(problem._replace(net=rewritten), params)
    return tree.flatten_named({"grads": gradients, "losses": values})


def fast(problem, statistics, params=None, **options):
    net, own, state, batch, key = problem
    params = own if params is None else params
    options = {"key": key, "statistics": statistics, **options}
    result = transforms.per_example_gradients(net, params, state, batch, **options)
    return tree.flatten_named({"grads": result.gradients, "losses": result.losses})


@each_meaning
@given(
    drawn=strategies.layers(classes=3), seed=strategies.seeds, chunk_size=st.sampled_from([None, 2])
)
@settings(max_examples=4)
def test_vmap_of_grad_is_a_loop_over_the_examples(statistics, drawn, seed, chunk_size):
    given = problem(drawn.layer(), drawn.shape, seed)
    assert_close(fast(given, statistics, chunk_size=chunk_size), slow(given, statistics))


@given(drawn=strategies.layers(classes=3), seed=strategies.seeds)
@settings(max_examples=4)
def test_through_the_statistics_their_mean_is_the_gradient_of_the_mean(drawn, seed):
    net, params, state, batch, key = given = problem(drawn.layer(), drawn.shape, seed)
    each = transforms.per_example_gradients(net, params, state, batch, key=key, statistics="batch")
    means = tree.map(lambda leaf: leaf.mean(0), {"grads": each.gradients, "loss": each.losses})
    actual = tree.flatten_named({**means, "state": each.state})
    expected = whole(given)
    del expected["correct"]
    assert_close(actual, expected)


@each_smooth_meaning
@given(drawn=strategies.layers(classes=3), seed=strategies.seeds)
@settings(max_examples=4)
def test_jvp_of_grad_is_that_of_the_loop(statistics, drawn, seed):
    given = problem(drawn.layer(), drawn.shape, seed)
    tangent = random_like(given.params, seed)
    actual, expected = (
        torch.func.jvp(partial(function, given, statistics), (given.params,), (tangent,))
        for function in (fast, slow)
    )
    assert_close(actual[1], expected[1])


@each_smooth_meaning
@given(drawn=strategies.layers(classes=3), seed=strategies.seeds)
@settings(max_examples=4)
def test_grad_of_vmap_of_grad_is_that_of_the_loop(statistics, drawn, seed):
    """The gradient of the variance of the gradients, as a penalty has it."""
    given = problem(drawn.layer(), drawn.shape, seed)

    def penalty(function, params):
        gradients = function(given, statistics, params)
        return sum(leaf.var(0).sum() + (leaf**3).sum() for leaf in gradients.values())

    actual, expected = (
        tree.flatten_named(torch.func.grad(partial(penalty, function))(given.params))
        for function in (fast, slow)
    )
    assert_close(actual, expected)


@each_meaning
def test_the_same_under_jit(statistics):
    given = problem()
    jitted = funcnets.jit(lambda params: fast(given, statistics, params), backend="graph")
    assert_close(jitted(given.params), slow(given, statistics))


def test_vmap_over_members_of_per_example_gradients():
    given = problem()
    members = [given.params, random_like(given.params, 1)]
    actual = torch.func.vmap(lambda params: fast(given, "batch_constant", params))(
        tree.transpose(members)
    )
    assert_close(actual, tree.transpose([slow(given, "batch_constant", p) for p in members]))


def test_without_batch_norm_no_meaning_is_needed():
    net = funcnets.sequential(
        flatten=layers.flatten(), dropout=layers.dropout(0.5), fc=layers.linear(3)
    )
    given = problem(net)
    assert_close(fast(given, None), slow(given, "batch"))


def test_a_frozen_network_keeps_its_statistics_and_draws_its_masks():
    net, params, state, (x, _), key = problem()
    frozen = transforms.frozen_statistics(net)
    y, after = frozen.apply(params, state, x, train=True, key=key)
    assert all(
        torch.equal(a, b) for a, b in zip(tree.leaves(after), tree.leaves(state), strict=True)
    )
    again, _ = frozen.apply(params, state, x[:1], train=True, key=random.key(9))
    assert not torch.allclose(y[:1], again)
    evaluated, _ = frozen.apply(params, state, x)
    assert torch.equal(evaluated, net.apply(params, state, x)[0])


def test_steps_of_private_training_without_noise_are_those_of_frozen_statistics():
    given, rate = problem(), optim.sgd(0.5, 0.9)
    private = optim.chain(optim.private(1e6, 0.0, 5, random.key(1)), rate)
    expected = train.create(NET, rate, random.key(0), given.batch[0])
    actual = expected._replace(opt_state=private.init(expected.params))
    step = train.make_train_step(transforms.frozen_statistics(NET), rate)
    each = train.make_train_step(NET, private, gradient=transforms.per_example("frozen"))
    for _ in range(3):
        (expected, loss), (actual, same) = (
            function(state, given.batch) for function, state in ((step, expected), (each, actual))
        )
        assert_close(
            tree.flatten_named(actual.params) | same, tree.flatten_named(expected.params) | loss
        )


@pytest.mark.parametrize("statistics", [None, "running"])
def test_batch_norm_without_a_meaning_is_refused(statistics):
    message = f"statistics is {statistics!r}, .*expected one of frozen, batch_constant, batch"
    with pytest.raises(ValueError, match=message):
        fast(problem(), statistics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "foo"}, "statistics is 'foo', .*expected one of frozen, batch_constant, b"),
        ({"chunk_size": 0}, "chunk_size is 0, expected 1 or more"),
    ],
)
def test_the_gradient_of_a_step_refuses_its_options_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        transforms.per_example(**options)


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_a_chunk_of_none_is_refused(chunk_size):
    net, params, state, batch, key = problem()
    with pytest.raises(ValueError, match=f"chunk_size is {chunk_size}, expected 1 or more"):
        transforms.per_example_gradients(
            net, params, state, batch, key=key, statistics="frozen", chunk_size=chunk_size
        )


@pytest.mark.parametrize(("part", "shape"), [("conv1", (5, 1, 5, 4)), ("flatten", (5, 1, 2, 2))])
def test_vmap_over_examples_in_training_is_refused_by_name(part, shape):
    net = funcnets.sequential(
        first=NET.children[part], bn=layers.batch_norm(), flatten=layers.global_avg_pool()
    )
    if part == "flatten":
        net = funcnets.sequential(first=NET.children[part], bn=layers.batch_norm())
    _, params, state, (x, _), _ = problem(net, shape)

    def loss(params, x):
        return net.apply(params, state, x[None], train=True)[0].sum()

    with pytest.raises(LayerError, match=r"^bn: .*vmap over examples.*statistics="):
        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)


def test_vmap_over_members_with_one_image_each_is_no_per_example_vmap():
    net = funcnets.sequential(conv=layers.conv2d(2, 3), bn=layers.batch_norm())
    x = random.normal(random.key(0), (1, 1, 5, 5), torch.float64)
    members = [net.init(random.key(i), x) for i in range(2)]
    apply = torch.func.vmap(lambda params, state: net.apply(params, state, x, train=True)[0])
    actual = apply(*tree.transpose(members))
    for i, (params, state) in enumerate(members):
        expected = net.apply(params, state, x, train=True)[0]
        assert_close({"y": actual[i]}, {"y": expected})


def test_an_optimizer_that_does_not_join_them_is_refused():
    optimizer, given = optim.sgd(0.1), problem()
    step = train.make_train_step(NET, optimizer, gradient=transforms.per_example("frozen"))
    message = r"^block.bn.bias: .*\(5, 2\), .* the parameter, \(2,\): .*clip_per_example"
    with pytest.raises(ValueError, match=message):
        step(train.create(NET, optimizer, random.key(0), given.batch[0]), given.batch)


def test_a_loss_of_ones_own():
    given = problem()
    smooth = partial(losses.cross_entropy, label_smoothing=0.1)
    plain, smoothed = (
        fast(given, "frozen", loss=loss)["losses"] for loss in (losses.cross_entropy, smooth)
    )
    assert not torch.allclose(plain, smoothed)
