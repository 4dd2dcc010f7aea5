"""Winograd's convolutions equal ATen's, in float64, and stand where their rule says."""

import itertools

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

    Where the rule says no, the rewrite is slower and as right.  Channels fill a vector, or don't.
    """
    side = draw(st.sampled_from(list(winograd.OUTPUTS)))
    padding = draw(st.tuples(st.integers(0, side - 1), st.integers(0, side - 1)))
    height, width = (draw(st.integers(max(1, side - 2 * p), 9)) for p in padding)
    images, inputs, outputs = (draw(st.integers(1, most)) for most in (3, 18, 18))
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


@given(cases())
def test_gradients(case):
    x, weight, bias, padding, block = case
    y = aten.convolution(x, weight, bias, [1, 1], padding, *PLAIN)
    grad = numbers(*y.shape, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "BLOCK_BYTES", block)
        of_input = winograd.input_gradient(grad, weight, padding)
        of_weight = winograd.weight_gradient(grad, x, weight.shape[2], padding)
    how = (list(bias.shape), [1, 1], padding, *PLAIN, [True, True, False])
    expected = aten.convolution_backward(grad, x, weight, *how)
    torch.testing.assert_close(of_input, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(of_weight, expected[1], rtol=1e-9, atol=1e-9)


# Of few channels, only the weight: each gradient is ATen's or one of tiles.
@pytest.mark.parametrize("outputs", [32, 64])
@pytest.mark.parametrize("mask", list(itertools.product([True, False], repeat=3)))
def test_backward(outputs, mask):
    x, weight = numbers(4, 64, 16, 16), numbers(outputs, 64, 3, 3, seed=1)
    grad, how = numbers(4, outputs, 16, 16, seed=2), ([1, 1], [1, 1], *PLAIN)
    assert winograd.is_faster(x, weight, *how) is (outputs == 64)
    assert winograd.is_faster_for_weight(x, weight, *how)
    results = winograd.backward(grad, x, weight, [outputs], *how, list(mask))
    expected = aten.convolution_backward(grad, x, weight, [outputs], *how, [True] * 3)
    for actual, other, wanted in zip(results, expected, mask, strict=True):
        if wanted:
            torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)
        else:
            assert actual is None


@pytest.mark.parametrize("side", winograd.OUTPUTS)
def test_float32_is_as_exact_as_the_description_says(side):
    """Errors against float64, of the largest output."""
    x, weight = numbers(2, 96, 12, 12), numbers(96, 96, side, side, seed=1)
    how = ([1, 1], [1, 1], *PLAIN)
    exact = aten.convolution(x, weight, None, *how)
    single = winograd.forward(x.float(), weight.float(), None, *how)
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize(
    ("expected", "x", "weight", "stride", "padding", "rest"),
    [
        # Whether the forward map and the gradient of the weight are done by tiles.
        ((True, True), (8, 64, 12, 12), (64, 64, 3, 3), 1, 1, PLAIN),
        ((True, True), (16, 128, 10, 10), (128, 128, 3, 3), 1, 0, PLAIN),
        ((True, True), (8, 96, 26, 26), (256, 96, 5, 5), 1, 2, PLAIN),
        ((True, True), (32, 128, 24, 24), (32, 128, 3, 3), 1, 1, PLAIN),
        ((False, False), (8, 96, 26, 26), (256, 96, 5, 5), 1, 5, PLAIN),
        ((False, False), (8, 96, 26, 26), (256, 96, 5, 5), 2, 2, PLAIN),
        ((False, False), (8, 96, 26, 26), (256, 96, 5, 3), 1, 2, PLAIN),
        ((False, False), (8, 96, 26, 26), (256, 96, 7, 7), 1, 2, PLAIN),
        ((False, False), (8, 16, 24, 24), (16, 16, 3, 3), 1, 1, PLAIN),
        ((False, False), (32, 32, 12, 12), (96, 32, 5, 5), 1, 2, PLAIN),
        ((False, True), (32, 64, 7, 7), (64, 64, 3, 3), 1, 1, PLAIN),
        ((False, True), (32, 96, 6, 6), (208, 96, 3, 3), 1, 1, PLAIN),
        ((False, False), (2, 512, 14, 14), (512, 512, 3, 3), 1, 1, PLAIN),
        ((False, False), (8, 128, 12, 12), (128, 64, 3, 3), 1, 1, ([1, 1], False, [0, 0], 2)),
        ((False, False), (8, 128, 12, 12), (128, 128, 3, 3), 1, 1, ([2, 2], False, [0, 0], 1)),
    ],
)
def test_rules(expected, x, weight, stride, padding, rest):
    tensors = torch.empty(x), torch.empty(weight)
    how = ([stride, stride], [padding, padding], *rest)

    def answers(*tensors):
        rules = winograd.is_faster, winograd.is_faster_for_weight
        return tuple(rule(*tensors, *how) for rule in rules)

    assert answers(*tensors) == expected
    assert answers(*(tensor.bfloat16() for tensor in tensors)) == (False, False)
    assert answers(*(tensor.to("meta") for tensor in tensors)) == (False, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "library", lambda side, dtype: None)  # without a compiler
        assert answers(*tensors) == (False, False)


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
    x, weight = numbers(16, 64, 8, 8, seed=seed), numbers(192, 64, 3, 3, seed=seed + 1) / 24
    jitted = funcnets.jit(function, backend="graph")
    torch.testing.assert_close(jitted(weight, x), function(weight, x), rtol=1e-9, atol=1e-9)
    fired = jitted.trace(weight, x).fired
    assert fired["winograd.forward"] > 0
    if function is not each:  # the gradients of single weights are those of a grouped convolution
        assert fired["winograd.backward"] > 0
