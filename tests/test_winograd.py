"""Winograd's convolutions equal ATen's, in float64, and stand where their rule says."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import random
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels import winograd as winograd_kernel
from funcnets.compiler.lowerings import winograd

aten = torch.ops.aten
PLAIN = ([1, 1], False, [0, 0], 1)


def numbers(*shape, seed=0, dtype=torch.float64):
    return random.normal(random.key(seed), shape, dtype)


@st.composite
def cases(draw):
    """Input, weight, bias and padding of a convolution.

    Where the rule says no, the rewrite is slower and as right.  Channels fill a vector, or don't;
    tiles are few, or more than are in work at a time.
    """
    side = draw(st.sampled_from(list(winograd_kernel.POINTS)))
    padding = draw(st.tuples(st.integers(0, side - 1), st.integers(0, side - 1)))
    height, width = (draw(st.integers(max(1, side - 2 * p), 9)) for p in padding)
    images = draw(st.sampled_from([1, 2, 30, 70]))
    inputs, outputs = (draw(st.integers(1, 18)) for _ in range(2))
    x = numbers(images, inputs, height, width, seed=draw(st.integers(0, 999)))
    weight, bias = numbers(outputs, inputs, side, side, seed=1), numbers(outputs, seed=2)
    if draw(st.booleans()):
        x, weight = (value.to(memory_format=torch.channels_last) for value in (x, weight))
    return x, weight, bias, list(padding)


@given(cases(), st.booleans())
def test_forward(case, with_bias):
    x, weight, bias, padding = case
    arguments = (x, weight, bias if with_bias else None, [1, 1], padding, *PLAIN)
    actual = winograd.forward(*arguments)
    torch.testing.assert_close(actual, aten.convolution(*arguments), rtol=1e-9, atol=1e-9)
    assert actual.is_contiguous(memory_format=torch.channels_last)


@given(cases())
def test_gradients(case):
    x, weight, bias, padding = case
    y = aten.convolution(x, weight, bias, [1, 1], padding, *PLAIN)
    grad = numbers(*y.shape, seed=3)
    of_input = winograd.input_gradient(grad, weight, padding)
    of_weight = winograd_kernel.weight_gradient(grad, x, weight.shape[2], padding)
    how = (list(bias.shape), [1, 1], padding, *PLAIN, [True, True, False])
    expected = aten.convolution_backward(grad, x, weight, *how)
    torch.testing.assert_close(of_input, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(of_weight, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask", list(itertools.product([True, False], repeat=3)))
def test_backward(mask):
    x, weight = numbers(4, 64, 16, 16), numbers(64, 64, 3, 3, seed=1)
    grad, how = numbers(4, 64, 16, 16, seed=2), ([1, 1], [1, 1], *PLAIN)
    results = winograd.backward(grad, x, weight, [64], *how, list(mask))
    expected = aten.convolution_backward(grad, x, weight, [64], *how, [True] * 3)
    for actual, other, wanted in zip(results, expected, mask, strict=True):
        if wanted:
            torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)
        else:
            assert actual is None


# Of the largest number: the types in memory and in products, and what errors may be.
@pytest.mark.parametrize(
    ("side", "stored", "factor", "most"),
    [
        (3, torch.float32, torch.float32, 3e-6),
        (5, torch.float32, torch.float32, 1e-5),
        (3, torch.bfloat16, torch.float32, 4e-3),
        (5, torch.bfloat16, torch.float32, 4e-3),
        (3, torch.bfloat16, torch.bfloat16, 2e-2),
    ],
)
def test_errors_are_as_the_description_says(monkeypatch, side, stored, factor, most):
    monkeypatch.setattr(winograd_kernel, "factor_dtype", lambda side, dtype: factor)
    x, weight = (
        numbers(*shape, seed=seed).to(stored)
        for seed, shape in enumerate([(3, 95, 12, 12), (97, 95, side, side)])
    )
    grad = numbers(3, 97, 14 - side + 1, 14 - side + 1, seed=2).to(stored)
    results = (
        winograd.forward(x, weight, None, [1, 1], [1, 1], *PLAIN),
        winograd.input_gradient(grad, weight, [1, 1]),
        winograd_kernel.weight_gradient(grad, x, side, [1, 1]),
    )
    wide = [value.double() for value in (x, weight, grad)]
    forward = aten.convolution(*wide[:2], None, [1, 1], [1, 1], *PLAIN)
    how = (None, [1, 1], [1, 1], *PLAIN, [True, True, False])
    of_input, of_weight, _ = aten.convolution_backward(wide[2], *wide[:2], *how)
    for actual, exact in zip(results, (forward, of_input, of_weight), strict=True):
        assert actual.dtype is stored
        error = (actual - exact).abs().max() / exact.abs().max()
        assert 0 < error < most


@pytest.mark.parametrize("factor", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_so(monkeypatch, factor):
    monkeypatch.setattr(winograd_kernel, "factor_dtype", lambda side, dtype: factor)
    x = torch.full((1, 16, 8, 8), math.nan, dtype=torch.bfloat16)
    weight = numbers(16, 16, 3, 3).bfloat16()
    assert winograd.forward(x, weight, None, [1, 1], [1, 1], *PLAIN).isnan().all()
    assert winograd_kernel.weight_gradient(x, x, 3, [1, 1]).isnan().all()


def test_saved():
    """A map of 8×8 and a kernel of 3×3: 576 products by a channel, or 4 tiles' 144."""
    given = winograd_kernel.sizes(torch.empty(25, 20, 8, 8), 30, 3, [1, 1])
    assert given.tiles == 100
    transformed = 100 * (20 + 30) + 3 * 20 * 30
    expected = (25 * 576 / (100 * 36) - 1) * 100 * 20 * 30 / transformed
    assert winograd.saved(given, 3) == pytest.approx(expected)
    assert winograd.saved(given, 3, cost=2) == pytest.approx(expected / 3)


@pytest.mark.parametrize(
    ("expected", "x", "weight", "stride", "padding", "rest"),
    [
        (True, (32, 64, 12, 12), (64, 64, 3, 3), 1, 1, PLAIN),
        (True, (64, 128, 10, 10), (128, 128, 3, 3), 1, 0, PLAIN),
        (True, (8, 96, 26, 26), (256, 96, 5, 5), 1, 2, PLAIN),
        (True, (32, 128, 24, 24), (32, 128, 3, 3), 1, 1, PLAIN),
        (True, (8, 512, 14, 14), (512, 512, 3, 3), 1, 1, PLAIN),
        (False, (1, 512, 14, 14), (512, 512, 3, 3), 1, 1, PLAIN),  # kernels take too much
        (False, (8, 96, 26, 26), (256, 96, 5, 5), 1, 5, PLAIN),
        (False, (8, 96, 26, 26), (256, 96, 5, 5), 2, 2, PLAIN),
        (False, (8, 96, 26, 26), (256, 96, 5, 3), 1, 2, PLAIN),
        (False, (8, 96, 26, 26), (256, 96, 7, 7), 1, 2, PLAIN),
        (False, (8, 16, 24, 24), (16, 16, 3, 3), 1, 1, PLAIN),
        (False, (32, 96, 6, 6), (208, 96, 3, 3), 2, 1, PLAIN),
        (False, (8, 128, 12, 12), (128, 64, 3, 3), 1, 1, ([1, 1], False, [0, 0], 2)),
        (False, (8, 128, 12, 12), (128, 128, 3, 3), 1, 1, ([2, 2], False, [0, 0], 1)),
    ],
)
def test_rule_with_avx512(expected, x, weight, stride, padding, rest, monkeypatch):
    tensors = torch.empty(x), torch.empty(weight)
    how = ([stride, stride], [padding, padding], *rest)
    monkeypatch.setattr(winograd, "has_avx512", lambda: True)
    assert winograd.is_faster(*tensors, *how) is expected
    assert not winograd.is_faster(*(tensor.to("meta") for tensor in tensors), *how)
    assert not winograd.is_faster(*(tensor.half() for tensor in tensors), *how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "is_available", lambda: False)  # without a compiler
        assert not winograd.is_faster(*tensors, *how)


@pytest.mark.parametrize(
    ("x", "outputs", "expected"),
    [
        ((256, 176, 6, 6), 32, (True, False)),
        ((128, 32, 6, 6), 128, (False, False)),
        ((256, 64, 24, 24), 32, (True, True)),
    ],
)
def test_without_avx512_fewer_saved_multiplications_are_enough(x, outputs, expected, monkeypatch):
    how = ([1, 1], [1, 1], *PLAIN)
    for has_avx512, is_faster in zip((False, True), expected, strict=True):
        monkeypatch.setattr(winograd, "has_avx512", lambda answer=has_avx512: answer)
        weight = torch.empty(outputs, x[1], 3, 3)
        assert winograd.is_faster(torch.empty(x), weight, *how) is is_faster


@pytest.mark.parametrize(
    ("instructions", "three", "five"),
    [
        # Of a processor for bfloat16: none, in vectors, in tiles of a matrix.
        ((False, False, False), torch.float32, torch.float32),
        ((True, True, False), torch.bfloat16, torch.float32),
        ((True, True, True), None, None),
    ],
)
def test_rule_of_bfloat16(monkeypatch, instructions, three, five):
    any_products, vectors, tiles = instructions
    monkeypatch.setattr(winograd, "has_bfloat16", lambda: any_products)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    x = torch.empty(8, 96, 24, 24, dtype=torch.bfloat16)
    for side, factor in ((3, three), (5, five)):
        weight = torch.empty(256, 96, side, side, dtype=torch.bfloat16)
        how = ([1, 1], [side // 2, side // 2], *PLAIN)
        assert winograd.is_faster(x, weight, *how) is (factor is not None)
        assert factor is None or winograd_kernel.factor_dtype(side, torch.bfloat16) is factor


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
    x, weight = numbers(32, 64, 8, 8, seed=seed), numbers(192, 64, 3, 3, seed=seed + 1) / 24
    jitted = funcnets.jit(function, backend="graph")
    torch.testing.assert_close(jitted(weight, x), function(weight, x), rtol=1e-9, atol=1e-9)
    fired = jitted.trace(weight, x).fired
    assert fired["winograd.forward"] > 0
    if function is not each:  # the gradients of single weights are those of a grouped convolution
        assert fired["winograd.backward"] > 0
