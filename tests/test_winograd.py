"""Errors and rules of Winograd convolution; test_lowerings.py has what all lowerings share."""

import math

import pytest
import torch
from tensors import numbers

import funcnets
from funcnets import dense, layers, random, sequential
from funcnets.compiler.kernels import winograd as winograd_kernel
from funcnets.compiler.lowerings import winograd
from funcnets.testing import assert_close

aten = torch.ops.aten
PLAIN = ([1, 1], False, [0, 0], 1)


# Dtypes in memory and of factors, and the largest error, as a share of the largest result.
@pytest.mark.parametrize(
    ("side", "stored", "factor", "bound"),
    [
        (3, torch.float32, torch.float32, 3e-6),
        (5, torch.float32, torch.float32, 1e-5),
        (3, torch.bfloat16, torch.float32, 4e-3),
        (5, torch.bfloat16, torch.float32, 4e-3),
        (3, torch.bfloat16, torch.bfloat16, 2e-2),
    ],
)
def test_errors_are_within_the_documented_bounds(monkeypatch, side, stored, factor, bound):
    monkeypatch.setattr(winograd_kernel, "factor_dtype", lambda side, dtype: factor)
    x, weight = (
        numbers(*shape, seed=seed, dtype=stored)
        for seed, shape in enumerate([(3, 95, 12, 12), (97, 95, side, side)])
    )
    grad = numbers(3, 97, 14 - side + 1, 14 - side + 1, seed=2, dtype=stored)
    results = (
        winograd.forward(x, weight, None, [1, 1], [1, 1], *PLAIN),
        winograd.input_gradient(grad, weight, [1, 1]),
        winograd_kernel.weight_gradient(grad, x, side, [1, 1]),
    )
    exact_operands = [value.double() for value in (x, weight, grad)]
    forward = aten.convolution(*exact_operands[:2], None, [1, 1], [1, 1], *PLAIN)
    how = (None, [1, 1], [1, 1], *PLAIN, [True, True, False])
    of_input, of_weight, _ = aten.convolution_backward(exact_operands[2], *exact_operands[:2], *how)
    for actual, exact in zip(results, (forward, of_input, of_weight), strict=True):
        assert actual.dtype is stored
        error = (actual - exact).abs().max() / exact.abs().max()
        assert 0 < error < bound


@pytest.mark.parametrize("factor", [torch.float32, torch.bfloat16])
def test_nan_stays_nan(monkeypatch, factor):
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
        # A processor's instructions for bfloat16: none, AVX512_BF16, AMX too.
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


def test_gradients_of_joined_channels_are_slices_and_read_as_such(monkeypatch):
    """The gradient of a concatenation is one map, of which each part gets a slice."""
    monkeypatch.setattr(winograd, "has_avx512", lambda: False)  # which leaves it to wider maps
    x = numbers(4, 64, 16, 16)
    joined = dense(conv=layers.conv2d(32, 3, padding=1))
    body = [layers.conv2d(64, 1), joined, layers.batch_norm(), layers.relu(), layers.conv2d(8, 1)]
    net = sequential(**{f"part{i}": part for i, part in enumerate(body)})
    params, state = net.init(random.key(0), x)

    def loss(params):
        return net.apply(params, state, x, train=True)[0].square().mean()

    step = funcnets.jit(funcnets.grad(loss), backend="graph")
    assert step.trace(params).fired["winograd.backward"] == 1
    assert_close(step(params), funcnets.grad(loss)(params))
