"""Per-example clipping against a loop, and noise against its law and its key."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import layers, optim, random, train, tree

seeds = st.integers(0, 2**31)
SHAPES = {"conv.weight": (3, 2, 2, 2), "conv.bias": (3,), "scale": ()}


def per_example(seed, count, dtype=torch.float64):
    keys = random.split(random.key(seed), len(SHAPES))
    return tree.unflatten_named(
        {
            name: random.normal(key, (count, *shape), dtype)
            for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
        }
    )


def row(grads, i):
    return tree.map(lambda leaf: leaf[i], grads)


def clipped(grads, *arguments):
    optimizer = optim.clip_per_example(*arguments)
    params = row(grads, 0)
    return optimizer.update(grads, optimizer.init(params), params)[0]


@given(seed=seeds, count=st.integers(1, 5), max_norm=st.floats(0.1, 20))
@settings(max_examples=30)
def test_the_mean_of_clipped_gradients_is_a_loop(seed, count, max_norm):
    grads = per_example(seed, count)
    norms = [float(optim.global_norm(row(grads, i))) for i in range(count)]
    assert optim.per_example_norms(grads).tolist() == pytest.approx(norms, rel=1e-12)
    for divisor in (None, 7):
        actual = clipped(grads, max_norm, divisor)
        expected = sum(
            torch.cat([leaf.flatten() for leaf in tree.leaves(row(grads, i))])
            * min(1.0, max_norm / norms[i])
            for i in range(count)
        ) / (divisor or count)
        found = torch.cat([leaf.flatten() for leaf in tree.leaves(actual)])
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert found.norm() <= max_norm * count / (divisor or count) * (1 + 1e-12)


def test_clipped_and_noised_under_jit_is_what_it_is_eagerly():
    optimizer, grads = optim.private(1.0, 1.1, 4, random.key(1)), per_example(0, 4)
    params = row(grads, 0)
    state = optimizer.init(params)
    jitted = funcnets.jit(optimizer.update, backend="graph")
    for actual, expected in zip(
        tree.leaves(jitted(grads, state, params)),
        tree.leaves(optimizer.update(grads, state, params)),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_zero_stays_zero():
    grads = tree.map(torch.zeros_like, per_example(0, 2))
    assert all(not leaf.any() for leaf in tree.leaves(clipped(grads, 1.0)))


def test_noise_has_its_deviation_and_is_new_at_each_step_and_leaf():
    params = {"a": torch.zeros(20_000), "b": torch.zeros(20_000)}
    optimizer = optim.add_noise(0.5, random.key(3))
    opt_state, drawn = optimizer.init(params), []
    for _ in range(2):
        updates, opt_state = optimizer.update(params, opt_state, params)
        drawn += [updates["a"], updates["b"]]
    for i, noise in enumerate(drawn):
        # Five standard errors of a deviation and of a mean of 20,000.
        assert float(noise.std()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(40_000))
        assert abs(float(noise.mean())) < 5 * 0.5 / math.sqrt(20_000)
        for other in drawn[:i]:
            correlation = torch.corrcoef(torch.stack([noise, other]))[0, 1]
            assert abs(float(correlation)) < 5 / math.sqrt(20_000)
    again = optimizer.update(params, optimizer.init(params), params)[0]
    assert torch.equal(again["a"], drawn[0])
    other = optim.add_noise(0.5, random.key(4))
    assert not torch.equal(other.update(params, other.init(params), params)[0]["a"], drawn[0])


def test_private_noise_is_scaled_to_the_clipped_mean():
    grads = {"a": torch.zeros(3, 20_000)}
    optimizer = optim.private(2.0, 1.5, 10, random.key(0))
    params = row(grads, 0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert updates["a"].shape == (20_000,)
    assert float(updates["a"].std()) == pytest.approx(1.5 * 2.0 / 10, rel=0.03)


def test_noise_of_members_under_vmap_is_a_loop_over_them():
    params = {"a": torch.zeros(4, dtype=torch.float64)}

    def noise(key):
        optimizer = optim.add_noise(1.0, key)
        return optimizer.update(params, optimizer.init(params), params)[0]["a"]

    keys = random.split(random.key(0), 3)
    assert torch.equal(torch.func.vmap(noise)(keys), torch.stack([noise(key) for key in keys]))


@pytest.mark.parametrize(
    "optimizer", [optim.private(1.0, 1.1, 6, random.key(1)), optim.clip_per_example(1.0)]
)
@pytest.mark.parametrize("features", [1, 3])
def test_gradients_of_the_whole_batch_are_told_to_be_of_each_example(optimizer, features):
    net, x, labels = layers.linear(features), torch.ones(6, 3), torch.zeros(6, dtype=torch.int64)
    optimizer = optim.chain(optimizer, optim.sgd(0.1))
    step = train.make_train_step(net, optimizer)
    message = r"^bias: the gradient has shape \(\d,\), .*gradient=transforms.per_example\("
    with pytest.raises(ValueError, match=message):
        step(train.create(net, optimizer, random.key(0), x), (x, labels))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.clip_per_example(0.0), "max_norm is 0.0; expected a finite number above 0"),
        (lambda: optim.clip_per_example(1.0, 0), "batch_size is 0; expected 1 or more"),
        (lambda: optim.add_noise(-1.0, random.key(0)), "deviation is -1.0"),
        (lambda: optim.private(1.0, -1.0, 8, random.key(0)), "noise is -1.0"),
        (lambda: optim.private(1.0, 1.0, 0, random.key(0)), "batch_size is 0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_empty_batch_gives_no_gradient_and_noise_alone():
    """As Poisson sampling draws some."""
    params = {"w": torch.zeros(3), "b": torch.zeros(())}
    grads = {"w": torch.zeros(0, 3), "b": torch.zeros(0)}
    clipped, _ = optim.clip_per_example(1.0, 8).update(grads, (), params)
    assert clipped["w"].tolist() == [0.0, 0.0, 0.0]
    assert clipped["b"].tolist() == 0.0
    private = optim.private(1.0, 1.1, 8, random.key(1))
    noise, _ = private.update(grads, private.init(params), params)
    alone = optim.add_noise(1.1 / 8, random.key(1))
    expected, _ = alone.update(params, alone.init(params), params)
    assert torch.equal(noise["w"], expected["w"])
    with pytest.raises(ValueError, match="the batch is empty"):
        optim.clip_per_example(1.0).update(grads, (), params)


def test_clip_factors_are_not_rounded_to_half_precision():
    grads = {"w": torch.full((4, 1), 1000.0, dtype=torch.float16)}
    clipped, _ = optim.clip_per_example(3e-5, 4).update(grads, (), {"w": grads["w"][0]})
    assert float(clipped["w"]) == pytest.approx(3e-5, rel=2e-2)
