"""Max pools that keep the place of a maximum as a byte equal ATen's, to the bit."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tensors import numbers
from torch.func import grad, jvp, vmap

import funcnets
from funcnets.compiler.kernels import build, max_pool

aten = torch.ops.aten
LAST = torch.channels_last


@st.composite
def cases(draw):
    """A map, of which some pixels are alike or no numbers, and how it is pooled."""
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    stride = [draw(st.integers(1, 4)) for _ in range(2)]
    padding = [draw(st.integers(0, side // 2)) for side in kernel]
    sides = [draw(st.integers(side, 9)) for side in kernel]
    channels = draw(st.sampled_from([1, 5, 32, 37]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    x = numbers(draw(st.integers(1, 3)), channels, *sides, seed=draw(st.integers(0, 999)))
    x = torch.where(x > 1.5, math.nan, torch.where(x < -1, -math.inf, x.mul(2).round()))
    how = (kernel, stride, padding, [1, 1], draw(st.booleans()))
    return x.to(dtype).to(memory_format=LAST), how


@given(cases())
def test_pools_and_their_gradients(case):
    x, how = case
    kernel, stride, padding, *_ = how
    assert max_pool.is_supported(x, *how)
    expected, indices = aten.max_pool2d_with_indices(x, *how)
    actual, where = max_pool.max_pool(x, kernel, stride, padding, expected.shape[2:])
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert actual.stride() == expected.stride()
    # Sums in bfloat16 are rounded once here: of small whole numbers both are exact.
    gradient = numbers(*expected.shape, seed=1).mul(2).round().to(x.dtype).to(memory_format=LAST)
    exact = aten.max_pool2d_with_indices_backward(gradient, x, *how, indices)
    assert torch.equal(
        max_pool.max_pool_backward(gradient, where, kernel, stride, padding, x.shape[2:]), exact
    )


@pytest.mark.parametrize(
    ("x", "how"),
    [
        (torch.ones(2, 3, 6, 6, device="meta").to(memory_format=LAST), ([2, 2], [2, 2])),
        (torch.ones(2, 3, 6, 6).half().to(memory_format=LAST), ([2, 2], [2, 2])),
        (torch.ones(2, 3, 40, 40).to(memory_format=LAST), ([17, 17], [2, 2])),
        (torch.ones(2, 3, 6, 6).to(memory_format=LAST), ([2, 2], [2, 2], [0, 0], [2, 2])),
        (torch.ones(2, 3, 6, 6).to(memory_format=LAST), ([2, 2], [])),
        (torch.ones(0, 3, 6, 6).to(memory_format=LAST), ([2, 2], [2, 2])),
    ],
    ids=["device", "half", "large", "dilated", "stride", "empty"],
)
def test_other_pools_stay(x, how):
    assert not max_pool.is_supported(x, *how)


def test_without_a_compiler_pools_stay(monkeypatch):
    x = torch.ones(2, 3, 6, 6).to(memory_format=LAST)
    assert max_pool.is_supported(x, [2, 2], [2, 2])
    monkeypatch.setattr(build, "is_available", lambda: False)
    assert not max_pool.is_supported(x, [2, 2], [2, 2])


def loss(x):
    return (F.max_pool2d(x.tanh(), 3, 2, 1) ** 3).sum()


@pytest.mark.parametrize("backend", ["graph", "native"])
@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda x: F.max_pool2d(x, 3, 2, 1), 1),
        (grad(loss), 1),
        (lambda x: jvp(grad(loss), (x,), (x,))[1], 0),  # gathers by the places
        (lambda x: vmap(grad(loss))(x[:, None]), 0),  # views of the places
        (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), 0),
    ],
    ids=["pool", "gradient", "hessian", "each", "places"],
)
def test_under_jit_and_transforms(function, times, backend):
    x = numbers(3, 2, 9, 8)
    jitted = funcnets.jit(function, backend=backend)
    torch.testing.assert_close(jitted(x), function(x), rtol=1e-9, atol=1e-9)
    assert jitted.trace(x).fired.get("fusion.max_pool", 0) == times
