"""Both conventions of batch norm, against torch's modules and a module from scratch."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from funcnets import random
from funcnets.core import LayerError, sequential
from funcnets.layers import batch_norm
from funcnets.testing import (
    assert_close,
    assert_equivalent,
    assert_transforms_agree,
    random_values,
    strategies,
    twins,
)

FORMS = {
    "rows": st.tuples(st.integers(3, 6), st.integers(1, 4)),
    "images": st.tuples(*[st.integers(1, 4)] * 2, st.integers(2, 5), st.integers(1, 5)),
}
momenta = st.floats(0.01, 1.0)
epsilons = st.sampled_from([1e-5, 1e-3, 0.1])


@pytest.fixture(params=FORMS, scope="module")
def form(request: pytest.FixtureRequest) -> st.SearchStrategy[tuple[int, ...]]:
    return FORMS[request.param]


def module(shape: tuple[int, ...], momentum: float, eps: float, unbiased: bool) -> nn.Module:
    if not unbiased:
        return twins.ScratchBatchNorm(shape[1], momentum=1 - momentum, eps=eps)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    return kind(shape[1], momentum=momentum, eps=eps)


@pytest.mark.parametrize("unbiased", [True, False], ids=["torch", "scratch"])
@given(data=st.data(), momentum=momenta, eps=epsilons, seed=strategies.seeds)
@settings(max_examples=40)
def test_equals_the_module(
    form: Any, unbiased: bool, data: st.DataObject, momentum: float, eps: float, seed: int
) -> None:
    shape = data.draw(form)
    net = batch_norm(momentum, eps, unbiased=unbiased)
    twin = module(shape, momentum, eps, unbiased)
    assert_equivalent(net, twin, shape, seed=seed, tolerance=1e-12, batch_sizes=shape[:1])


def test_conventions_differ_in_the_running_variance_alone() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    params, state = batch_norm().init(random.key(0), x)
    assert {name: leaf.unique().tolist() for name, leaf in (params | state).items()} == {
        "weight": [1.0],
        "bias": [0.0],
        "running_mean": [0.0],
        "running_var": [1.0],
    }
    ours, unbiased = batch_norm().apply(params, state, x, train=True)
    theirs, biased = batch_norm(unbiased=False).apply(params, state, x, train=True)
    assert torch.equal(ours, theirs)
    assert torch.equal(unbiased["running_mean"], biased["running_mean"])
    grown = {"grown": (unbiased["running_var"] - 0.9) * 2 / 3}
    assert_close(grown, {"grown": biased["running_var"] - 0.9}, 1e-12)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
@pytest.mark.parametrize("unbiased", [True, False])
def test_one_value_per_channel(shape: tuple[int, ...], unbiased: bool) -> None:
    net = sequential(stage=sequential(bn=batch_norm(unbiased=unbiased)))
    x = torch.ones(shape)
    params, state = net.init(random.key(0), x)
    with pytest.raises(LayerError, match=r"^stage\.bn: .*one value per channel"):
        net.apply(params, state, x, train=True)
    assert net.apply(params, state, x)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2)])
def test_no_value_per_channel(shape: tuple[int, ...]) -> None:
    """Refused before torch warns of it; an evaluation may be of nothing, as in `init`."""
    net, x = sequential(bn=batch_norm()), torch.ones(shape)
    params, state = net.init(random.key(0), x)
    with pytest.raises(LayerError, match=r"^bn: .*no value per channel in training"):
        net.apply(params, state, x, train=True)
    assert net.apply(params, state, x)[0].shape == shape


def test_statistics_of_bfloat16_are_computed_in_float32() -> None:
    # Around 256 the bfloat16 numbers are 2 apart.
    x = 256 + 2 * torch.randn(64, 1).sign().to(torch.bfloat16)
    params, state = batch_norm(momentum=1.0).init(random.key(0), x)
    _, state = batch_norm(momentum=1.0).apply(params, state, x, train=True)
    expected = {"running_mean": x.float().mean(0), "running_var": x.float().var(0)}
    assert_close(state, expected, 1e-5)


@given(data=st.data(), seed=strategies.seeds)
@settings(max_examples=15)
def test_transforms_agree(form: Any, data: st.DataObject, seed: int) -> None:
    x = random.normal(random.key(seed), data.draw(form), torch.float64)
    params, state = random_values(batch_norm(), x, seed)
    call = partial(batch_norm(0.3).apply, train=True)
    checks = ["vmap", "vjp"]
    assert_transforms_agree(call, params, state, x, checks=checks, seed=seed)
