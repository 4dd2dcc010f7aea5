"""Average pools in C++ equal ATen's, to the bit, and stand where their rule says."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap

import funcnets
from funcnets import random
from funcnets.compiler.kernels import build
from funcnets.compiler.lowerings import avg_pool

aten = torch.ops.aten


def numbers(*shape, seed=0):
    return random.normal(random.key(seed), shape, torch.float64)


@st.composite
def cases(draw):
    kernel = draw(st.sampled_from([[1, 1], [2, 2], [1, 2], [2, 1], [4, 1], [3, 1], [2]]))
    rows, columns, images, channels = (draw(st.integers(1, 4)) for _ in range(4))
    return numbers(images, channels, rows * kernel[0], columns * kernel[-1]), kernel


@given(cases(), st.booleans(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_pools(case, given_stride, dtype):
    x, kernel = case
    x, stride = x.to(dtype), kernel if given_stride else []
    assert avg_pool.is_faster(x, kernel, stride)
    expected = aten.avg_pool2d(x, kernel, stride)
    assert torch.equal(avg_pool.forward(x, kernel, stride), expected)
    gradient = numbers(*expected.shape, seed=1).to(dtype)
    how = (kernel, stride, [0, 0], False, True, None)
    actual = avg_pool.backward(gradient, x, *how)
    assert torch.equal(actual, aten.avg_pool2d_backward(gradient, x, *how))


def test_without_a_compiler_pools_stay(monkeypatch):
    monkeypatch.setattr(build, "is_available", lambda: False)
    assert not avg_pool.is_faster(torch.ones(2, 3, 6, 6), [2, 2])


@pytest.mark.parametrize(
    ("x", "how"),
    [
        (torch.ones(2, 3, 5, 4), ([2, 2],)),
        (torch.ones(2, 3, 6, 6), ([2, 2], [1, 1])),
        (torch.ones(2, 3, 6, 6), ([2, 2], [2, 2], [1, 1])),
        (torch.ones(2, 3, 6, 6), ([3, 3],)),
        (torch.ones(2, 3, 6, 6), ([2, 2], [2, 2], [0, 0], False, True, 3)),
        (torch.ones(3, 6, 6), ([2, 2],)),
        (torch.ones(0, 3, 6, 6), ([2, 2],)),
        (torch.ones(2, 3, 6, 6).to(memory_format=torch.channels_last), ([2, 2],)),
        (torch.ones(2, 3, 6, 6, device="meta"), ([2, 2],)),
        (torch.ones(2, 3, 6, 6).half(), ([2, 2],)),
    ],
)
def test_other_pools_stay(x, how):
    assert not avg_pool.is_faster(x, *how)


def loss(x):
    return (F.avg_pool2d(x.tanh(), 2) ** 3).sum()


TRANSFORMED = {
    "gradient": grad(loss),
    "hessian": lambda x: jvp(grad(loss), (x,), (x,))[1],
    "each": lambda x: vmap(grad(loss))(x[:, None]),
}


@pytest.mark.parametrize("function", TRANSFORMED.values(), ids=TRANSFORMED)
@pytest.mark.parametrize("backend", ["graph", "native"])
def test_under_jit_and_transforms(function, backend):
    x = numbers(3, 2, 4, 4)
    jitted = funcnets.jit(function, backend=backend)
    torch.testing.assert_close(jitted(x), function(x), rtol=1e-9, atol=1e-9)
    assert jitted.trace(x).fired["avg_pool.backward"] >= 1
