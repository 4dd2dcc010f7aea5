"""Winograd's convolutions equal ATen's, in float64, and stand where their rule says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import random
from funcnets.jit.lowerings import winograd

aten = torch.ops.aten
PLAIN = ([1, 1], False, [0, 0], 1)


def numbers(*shape, seed=0, dtype=torch.float64):
    return random.normal(random.key(seed), shape, dtype)


@st.composite
def cases(draw):
    """Input, weight, bias and padding of a convolution, and the bytes of a block.

    Where the rule says no, the rewrite is slower and as right.
    """
    side = draw(st.sampled_from(list(winograd.POINTS)))
    padding = draw(st.tuples(st.integers(0, side - 1), st.integers(0, side - 1)))
    height, width = (draw(st.integers(max(1, side - 2 * p), 9)) for p in padding)
    images, inputs, outputs = (draw(st.integers(1, 4)) for _ in range(3))
    x = numbers(images, inputs, height, width, seed=draw(st.integers(0, 999)))
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    weight, bias = numbers(outputs, inputs, side, side, seed=1), numbers(outputs, seed=2)
    return x, weight, bias, list(padding), draw(st.sampled_from([1, 4000, 1 << 23]))


@given(cases(), st.booleans())
def test_forward(case, with_bias):
    x, weight, bias, padding, block = case
    arguments = (x, weight, bias if with_bias else None, [1, 1], padding, *PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "BLOCK_BYTES", block)
        actual = winograd.forward(*arguments)
    torch.testing.assert_close(actual, aten.convolution(*arguments), rtol=1e-9, atol=1e-9)
    assert actual.is_contiguous(memory_format=torch.channels_last)


@given(cases(), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_backward(case, mask):
    x, weight, bias, padding, block = case
    y = aten.convolution(x, weight, bias, [1, 1], padding, *PLAIN)
    arguments = (numbers(*y.shape, seed=3), x, weight, list(bias.shape), [1, 1], padding, *PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "BLOCK_BYTES", block)
        results = winograd.backward(*arguments, list(mask))
    expected = aten.convolution_backward(*arguments, [True, True, True])
    for actual, other, wanted in zip(results, expected, mask, strict=True):
        if wanted:
            torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)
        else:
            assert actual is None


@pytest.mark.parametrize("side", winograd.POINTS)
def test_float32_is_as_exact_as_the_description_says(side):
    """Errors against float64, of the largest output."""
    x, weight = numbers(2, 96, 12, 12), numbers(96, 96, side, side, seed=1)
    how = ([1, 1], [1, 1], *PLAIN)
    exact = aten.convolution(x, weight, None, *how)
    single = winograd.forward(x.float(), weight.float(), None, *how)
    assert (single - exact).abs().max() < {3: 2e-6, 5: 1e-5}[side] * exact.abs().max()


@pytest.mark.parametrize(
    ("expected", "x", "weight", "stride", "padding", "rest"),
    [
        (True, (2, 64, 12, 12), (192, 64, 3, 3), 1, 1, PLAIN),
        (True, (2, 128, 10, 10), (128, 128, 3, 3), 1, 0, PLAIN),
        (True, (2, 96, 26, 26), (256, 96, 5, 5), 1, 2, PLAIN),
        (False, (2, 96, 26, 26), (256, 96, 5, 5), 1, 5, PLAIN),
        (False, (2, 96, 26, 26), (256, 96, 5, 5), 2, 2, PLAIN),
        (False, (2, 96, 26, 26), (256, 96, 5, 3), 1, 2, PLAIN),
        (False, (2, 96, 26, 26), (256, 96, 7, 7), 1, 2, PLAIN),
        (False, (2, 64, 12, 12), (128, 64, 3, 3), 1, 1, PLAIN),
        (False, (2, 32, 12, 12), (512, 32, 3, 3), 1, 1, PLAIN),
        (False, (2, 128, 9, 9), (128, 128, 3, 3), 1, 0, PLAIN),
        (False, (2, 128, 12, 12), (128, 64, 3, 3), 1, 1, ([1, 1], False, [0, 0], 2)),
        (False, (2, 128, 12, 12), (128, 128, 3, 3), 1, 1, ([2, 2], False, [0, 0], 1)),
    ],
)
def test_rule(expected, x, weight, stride, padding, rest):
    tensors = torch.empty(x), torch.empty(weight)
    how = ([stride, stride], [padding, padding], *rest)
    assert winograd.is_suited(*tensors, *how) is expected
    assert not winograd.is_suited(*(tensor.bfloat16() for tensor in tensors), *how)
    assert not winograd.is_suited(*(tensor.to("meta") for tensor in tensors), *how)


def test_operations_are_what_their_fakes_say():
    x, weight, bias, grad = (
        numbers(2, 3, 6, 7),
        numbers(4, 3, 3, 3),
        numbers(4),
        numbers(2, 4, 6, 7),
    )
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    for operation, arguments in (
        (winograd.CONVOLVE, (x, weight, bias, [1, 1])),
        (winograd.WEIGHT_GRADIENT, (grad, x, 3, [1, 1])),
    ):
        results = torch.library.opcheck(operation, arguments, **checks)
        assert set(results.values()) == {"SUCCESS"}


def loss(weight, x):
    return (torch.conv2d(x, weight, padding=1).tanh() * x.sum(1, keepdim=True)).sum()


def product(weight, x):
    """The Hessian of the loss, times the weight."""
    gradient = torch.func.grad(loss)
    return torch.func.jvp(lambda w: gradient(w, x), (weight,), (weight,))[1]


def each(weight, x):
    """The gradient for each image."""
    return torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x[:, None])


@pytest.mark.parametrize("function", [torch.func.grad(loss), product, each])
@settings(max_examples=2)
@given(seed=st.integers(0, 99))
def test_under_jit_and_transforms(function, seed):
    x, weight = numbers(2, 64, 8, 8, seed=seed), numbers(192, 64, 3, 3, seed=seed + 1) / 24
    jitted = funcnets.jit(function, backend="graph")
    torch.testing.assert_close(jitted(weight, x), function(weight, x), rtol=1e-9, atol=1e-9)
    fired = jitted.trace(weight, x).fired
    assert fired["winograd.forward"] > 0
    if function is not each:  # the gradients of single weights are those of a grouped convolution
        assert fired["winograd.backward"] > 0
