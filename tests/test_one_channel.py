"""Convolutions of one channel in C++ equal ATen's, in float64, and stand where their rule says."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import funcnets
from funcnets import random
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels import one_channel as one_channel_kernel
from funcnets.compiler.lowerings import one_channel

aten = torch.ops.aten


@pytest.fixture(autouse=True, scope="module")
def without_avx512():
    """Where oneDNN has kernels for first layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_channel, "has_avx512", lambda: False)
        yield


def numbers(*shape, seed=0, dtype=torch.float64):
    return random.normal(random.key(seed), shape, dtype)


def how(stride, padding):
    return (list(stride), list(padding), [1, 1], False, [0, 0], 1)


# Sides of the kernel, stride and padding: each is compiled for itself.
KERNELS = [
    ((7, 7), (2, 2), (3, 3)),
    ((11, 11), (4, 4), (1, 1)),
    ((3, 2), (1, 3), (0, 2)),
]


@st.composite
def arguments(draw):
    """Images, weight, bias and how of a convolution, some with rows of no whole groups."""
    kernel, stride, padding = draw(st.sampled_from(KERNELS))
    output = draw(st.integers(1, 5)), draw(st.integers(6, 15))
    side = [
        (n - 1) * s + k - 2 * p + draw(st.integers(0, s - 1))
        for n, s, k, p in zip(output, stride, kernel, padding, strict=True)
    ]
    batch, channels = draw(st.integers(1, 20)), 16 * draw(st.integers(1, 3))
    x, weight = numbers(batch, 1, *side), numbers(channels, 1, *kernel, seed=1)
    return x, weight, numbers(channels, seed=2), *how(stride, padding)


@given(arguments(), st.booleans())
def test_forward(call, with_bias):
    x, weight, bias, *rest = call
    assert one_channel.is_faster(x, weight, *rest)
    call = (x, weight, bias if with_bias else None, *rest)
    result, expected = one_channel.forward(*call), aten.convolution(*call)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert result.is_contiguous(memory_format=torch.channels_last)


@given(arguments(), st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_backward(call, memory_format):
    x, weight, bias, *rest = call
    grad = numbers(*aten.convolution(*call).shape, seed=3).to(memory_format=memory_format)
    call = (grad, x, weight, [len(bias)], *rest)
    expected = aten.convolution_backward(*call, [True] * 3)
    for mask in itertools.product([True, False], repeat=3):
        results = one_channel.backward(*call, list(mask))
        for actual, other, wanted in zip(results, expected, mask, strict=True):
            if wanted:
                torch.testing.assert_close(actual, other, rtol=1e-11, atol=1e-11)
            else:
                assert actual is None


def test_many_pixels_are_summed_precisely():
    """In float32, to two parts in a million."""
    x, grad = (random.uniform(random.key(i), (16, n, 96, 96)) for i, n in ((0, 1), (1, 32)))
    exact = aten.convolution_backward(
        grad.double(),
        x.double(),
        numbers(32, 1, 3, 3),
        None,
        *how((1, 1), (1, 1)),
        [False, True, False],
    )[1]
    gradient = one_channel_kernel.weight_gradient(grad, x, (3, 3), (1, 1), (1, 1))
    assert (gradient - exact).abs().max() < 2e-6 * exact.abs().max()


def test_operands_with_gaps():
    stride, padding = (2, 2), (3, 3)
    x, weight, bias = numbers(3, 1, 12, 12), numbers(16, 1, 7, 7, seed=1), numbers(16, seed=2)
    expected = one_channel_kernel.convolution(x, weight, bias, stride, padding)
    apart = [torch.stack([each, each], -1)[..., 0] for each in (x, weight, bias)]
    assert not apart[0].is_contiguous()
    torch.testing.assert_close(one_channel_kernel.convolution(*apart, stride, padding), expected)
    gradients = [
        one_channel_kernel.weight_gradient(expected, each, (7, 7), stride, padding)
        for each in (x, apart[0])
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("x", "weight", "stride", "changes"),
    [
        ((2, 2, 28, 28), (64, 2, 7, 7), 1, {}),  # channels
        ((2, 1, 28, 28), (24, 1, 7, 7), 1, {}),  # outputs that fill no block
        ((2, 1, 28, 11), (64, 1, 7, 7), 1, {}),  # five pixels in a row
        ((2, 1, 6, 28), (64, 1, 7, 7), 1, {}),  # none
        ((2, 1, 28, 28), (64, 1, 5, 1), 1, {}),  # five taps
        ((2, 1, 28, 28), (64, 1, 7, 7), 1, {2: [2, 2]}),
        ((2, 1, 28, 28), (64, 1, 7, 7), 1, {3: True}),
    ],
)
def test_what_the_rule_leaves_to_others(x, weight, stride, changes):
    rest = [changes.get(i, each) for i, each in enumerate(how((stride, stride), (0, 0)))]
    assert not one_channel.is_faster(numbers(*x), numbers(*weight), *rest)


def test_other_types_and_machines_are_left_to_others(monkeypatch):
    x, weight, rest = numbers(2, 1, 28, 28), numbers(64, 1, 7, 7), how((2, 2), (3, 3))
    assert one_channel.is_faster(x, weight, *rest)
    assert one_channel.is_faster(x.to(memory_format=torch.channels_last), weight, *rest)
    assert not one_channel.is_faster(x.bfloat16(), weight.bfloat16(), *rest)
    assert not one_channel.is_faster(x.to("meta"), weight.to("meta"), *rest)
    with monkeypatch.context() as patch:
        patch.setattr(build, "is_available", lambda: False)
        assert not one_channel.is_faster(x, weight, *rest)
    monkeypatch.setattr(one_channel, "has_avx512", lambda: True)
    assert not one_channel.is_faster(x, weight, *rest)


@pytest.mark.parametrize("backend", ["graph", "native"])
def test_it_fires_in_a_graph_and_in_derivatives_of_derivatives(backend):
    x, weight, bias = numbers(3, 1, 14, 14), numbers(16, 1, 7, 7, seed=1), numbers(16, seed=2)

    def loss(weight):
        y = torch.nn.functional.conv2d(x, weight, bias, stride=2, padding=3)
        return y.sin().sum()

    def product(weight, tangent):
        return torch.func.jvp(torch.func.grad(loss), (weight,), (tangent,))

    jitted = funcnets.jit(product, backend=backend)
    tangent = numbers(*weight.shape, seed=4)
    assert {"one_channel.forward", "one_channel.backward"} <= jitted.trace(
        weight, tangent
    ).fired.keys()
    for actual, expected in zip(jitted(weight, tangent), product(weight, tangent), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_mapped_weights():
    """As of an ensemble on one batch: one convolution to all their channels."""
    x, weights = numbers(3, 1, 14, 14), numbers(4, 32, 1, 7, 7, seed=1)

    def outputs(weights):
        return torch.func.vmap(lambda weight: torch.nn.functional.conv2d(x, weight))(weights)

    jitted = funcnets.jit(outputs)
    assert jitted.trace(weights).fired == {"one_channel.forward": 1}
    torch.testing.assert_close(jitted(weights), outputs(weights), rtol=1e-11, atol=1e-11)
