"""Learning rates as functions of the step: those of torch.optim.lr_scheduler."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from funcnets import optim

STEPS = 10

rates = st.floats(1e-3, 1.0)
examples = settings(deadline=None, max_examples=30)


def rates_of(schedule: optim.Schedule, steps: int) -> list[float]:
    values = [schedule(torch.tensor(step)) for step in range(steps)]
    assert all(value.shape == () and value.dtype == torch.float64 for value in values)
    return [value.item() for value in values]


def torch_rates(make: Callable[[Any], Any], value: float, steps: int) -> list[float]:
    leaf = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([leaf], value)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) < steps:
            scheduler.step()
    return found


@examples
@given(rate=rates, every=st.integers(1, 5), factor=st.floats(0.0, 1.5))
def test_step_decay_is_torchs(rate, every, factor):
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.StepLR(o, every, factor), rate, 2 * STEPS
    )
    actual = rates_of(optim.step_decay(rate, every, factor), 2 * STEPS)
    assert actual == pytest.approx(expected, abs=1e-12)


@examples
@given(rate=rates, total=st.integers(1, STEPS), end=st.floats(0.0, 1.0))
def test_linear_is_torchs_and_holds_its_end(rate, total, end):
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, end, total), rate, total + 3
    )
    actual = rates_of(optim.linear(rate, total, end * rate), total + 3)
    assert actual == pytest.approx(expected, abs=1e-12)
    assert actual[0] == rate
    assert actual[total:] == [end * rate] * 3


@examples
@given(rate=rates, total=st.integers(1, 2 * STEPS), end=st.floats(0.0, 1.0))
def test_cosine_is_torchs_and_holds_its_end(rate, total, end):
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total, end), rate, total + 1
    )
    actual = rates_of(optim.cosine(rate, total, end), total + 3)
    assert actual[: total + 1] == pytest.approx(expected, abs=1e-12)
    assert actual[total:] == pytest.approx([end] * 3, abs=1e-15)


@examples
@given(
    rate=rates,
    total=st.integers(2, 2 * STEPS),
    pct_start=st.floats(0.0, 0.95),
    div_factor=st.floats(1.0, 100.0),
    final_div_factor=st.floats(1.0, 1e5),
)
def test_one_cycle_is_torchs_and_holds_its_end(
    rate, total, pct_start, div_factor, final_div_factor
):
    assume(pct_start * total != 1)  # torch's own divides by zero there
    options = {
        "pct_start": pct_start,
        "div_factor": div_factor,
        "final_div_factor": final_div_factor,
    }
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, rate, total, **options), rate, total
    )
    actual = rates_of(optim.one_cycle(rate, total, **options), total + 2)
    assert actual == pytest.approx([*expected, expected[-1], expected[-1]], abs=1e-12)


def test_one_cycle_with_its_top_at_the_first_step():
    actual = rates_of(optim.one_cycle(1.0, 10, pct_start=0.1), 10)
    assert actual[0] == 1.0
    assert all(a > b for a, b in itertools.pairwise(actual))


@examples
@given(rate=rates, steps=st.integers(1, STEPS))
def test_warmup_is_torchs_linear_then_the_schedule(rate, steps):
    climb = torch_rates(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1 / (steps + 1), 1.0, steps), rate, steps
    )
    schedule = optim.cosine(rate, STEPS)
    actual = rates_of(optim.warmup(steps, schedule), steps + STEPS)
    assert actual == pytest.approx(climb + rates_of(schedule, STEPS), abs=1e-12)
    assert min(actual) > 0


def test_no_warmup_is_the_schedule():
    schedule = optim.linear(0.3, 5)
    assert rates_of(optim.warmup(0, schedule), 7) == rates_of(schedule, 7)


def test_constant():
    assert rates_of(optim.constant(0.3), 3) == [0.3] * 3


@pytest.mark.parametrize(
    "schedule",
    [
        optim.constant(0.3),
        optim.step_decay(0.3, 2, 0.5),
        optim.linear(0.3, 7),
        optim.cosine(0.3, 7),
        optim.one_cycle(0.3, 7),
        optim.warmup(3, optim.cosine(0.3, 7)),
    ],
)
def test_a_schedule_takes_a_number_too(schedule):
    for step in range(9):
        assert torch.equal(schedule(step), schedule(torch.tensor(step)))
