"""Exponential moving averages against their sum, and beside a training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import funcnets
from funcnets import layers, optim, random, train, transforms, tree
from funcnets.testing import assert_close

NET = funcnets.sequential(
    conv=layers.conv2d(2, 3),
    bn=layers.batch_norm(),
    tanh=layers.tanh(),
    flatten=layers.flatten(),
    fc=layers.linear(3),
)

decays = st.sampled_from([0.0, 0.5, 0.9, 0.999])


def values(count: int, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    return [{"a": random.normal(k, (3,), dtype)} for k in random.split(random.key(count), count)]


@given(decay=decays, steps=st.integers(1, 9), debias=st.booleans())
@settings(max_examples=40)
def test_the_average_is_a_weighted_sum(decay, steps, debias):
    first, *later = values(steps + 1)
    average = optim.exponential_moving_average(decay, debias=debias)
    state = average.init(first)
    for value in later:
        state = average.update(value, state)
    weights = [(1 - decay) * decay**age for age in reversed(range(steps))]
    start = 0.0 if debias else decay**steps
    total = sum(w * value["a"] for w, value in zip(weights, later, strict=True))
    expected = (start * first["a"] + total) / (sum(weights) + start)
    assert torch.allclose(state.average["a"], expected, rtol=1e-12, atol=1e-12)
    assert state.step == steps


def test_an_average_of_low_precision_is_kept_in_float32():
    average = optim.exponential_moving_average(0.999)
    state = average.init({"a": torch.zeros(2, dtype=torch.bfloat16)})
    for _ in range(100):
        state = average.update({"a": torch.ones(2, dtype=torch.bfloat16)}, state)
    assert state.average["a"].dtype == torch.float32
    assert state.average["a"].tolist() == pytest.approx([1 - 0.999**100] * 2, rel=1e-3)


def test_vmap_over_models_is_a_loop_over_models():
    average = optim.exponential_moving_average(0.9, debias=True)
    first, second = (tree.transpose(values(3)) for _ in range(2))

    def averaged(start, value):
        return average.update(value, average.init(start)).average

    actual = torch.func.vmap(averaged)(first, second)
    for i in range(3):
        one = averaged(*({"a": stacked["a"][i]} for stacked in (first, second)))
        assert torch.equal(actual["a"][i], one["a"])


def training():
    images = random.normal(random.key(8), (12, 1, 5, 5), torch.float64)
    labels = torch.arange(12) % 3
    optimizer = optim.sgd(0.1, momentum=0.5)
    step = train.make_train_step(NET, optimizer)
    train_state = train.create(NET, optimizer, random.key(0), images)
    fit = {"batch": (images, labels), "batch_size": 5, "epochs": 2}
    return step, train_state, fit


@pytest.mark.parametrize("jitted", [False, True])
def test_a_training_goes_on_as_without_its_average_which_is_evaluated(jitted):
    average = optim.exponential_moving_average(0.5)
    step, train_state, fit = training()
    plain = [progress.train_state for progress in train.fit(step, train_state, **fit)]
    expected = average.init((train_state.params, train_state.state))
    for after in plain:
        expected = average.update((after.params, after.state), expected)
    averaged = transforms.averaged(step, average)
    if jitted:
        averaged = funcnets.jit(averaged, donate_argnums=0, backend="graph")
    begun = tree.map(torch.clone, transforms.with_average(train_state, average))
    last = [*train.fit(averaged, begun, **fit)][-1].train_state
    assert_close(tree.flatten_named(last.params), tree.flatten_named(plain[-1].params))
    actual = transforms.averages(last)
    assert_close(tree.flatten_named(actual), tree.flatten_named(expected.average))
    assert last.opt_state.average.step == len(plain)
    eval_step = train.make_eval_step(NET)
    losses = {
        name: train.evaluate(eval_step, *values, fit["batch"]).loss
        for name, values in {"last": (last.params, last.state), "average": actual}.items()
    }
    assert losses["last"] != losses["average"]


def test_a_state_without_an_average_is_refused():
    step, train_state, fit = training()
    average = optim.exponential_moving_average(0.5)
    with pytest.raises(TypeError, match=r"begin with transforms\.with_average"):
        transforms.averaged(step, average)(train_state, fit["batch"])
    with pytest.raises(TypeError, match="no average"):
        transforms.averages(train_state)


@pytest.mark.parametrize("first", [0.0, 1e30, float("inf"), float("nan")])
def test_initial_values_without_weight_are_not_kept(first):
    average = optim.exponential_moving_average(0.9, debias=True)
    state = average.init({"w": torch.tensor([first])})
    for _ in range(3):
        state = average.update({"w": torch.ones(1)}, state)
        assert state.average["w"].tolist() == [1.0]
