"""Exponential moving averages against their sum, and beside a training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from funcnets import optim, random, tree

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
