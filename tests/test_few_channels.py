"""Convolutions of few channels in C++ equal ATen's, in float64, and stand where their rule says."""

import itertools

import pytest
import torch

import funcnets
from funcnets import random
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels import few_channels as few_channels_kernel
from funcnets.compiler.lowerings import few_channels

aten = torch.ops.aten
HOW = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)

# Batch, channels in and out, sides of the image and of the kernel.  Rows of one vector, of two
# that lie over each other, and in two pieces; blocks of all outputs, of some, and of one.
SHAPES = [
    (3, 1, 6, (28, 28), (5, 5)),
    (17, 6, 16, (12, 12), (5, 5)),
    (2, 2, 3, (9, 17), (7, 4)),
    (1, 3, 13, (6, 11), (5, 5)),
    (40, 1, 1, (5, 32), (5, 7)),
]


def numbers(*shape, seed=0, dtype=torch.float64):
    return random.normal(random.key(seed), shape, dtype)


def arguments(batch, inputs, outputs, side, kernel, dtype=torch.float64):
    x = numbers(batch, inputs, *side, dtype=dtype)
    weight = numbers(outputs, inputs, *kernel, seed=1, dtype=dtype)
    return x, weight, numbers(outputs, seed=2, dtype=dtype)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(shape, with_bias):
    x, weight, bias = arguments(*shape)
    assert few_channels.is_faster(x, weight, *HOW)
    call = (x, weight, bias if with_bias else None, *HOW)
    torch.testing.assert_close(
        few_channels.forward(*call), aten.convolution(*call), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("mask", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(shape, mask):
    x, weight, bias = arguments(*shape)
    grad = numbers(*aten.convolution(x, weight, bias, *HOW).shape, seed=3)
    call = (grad, x, weight, [len(bias)], *HOW)
    results = few_channels.backward(*call, list(mask))
    expected = aten.convolution_backward(*call, [True] * 3)
    for actual, other, wanted in zip(results, expected, mask, strict=True):
        if wanted:
            torch.testing.assert_close(actual, other, rtol=1e-11, atol=1e-11)
        else:
            assert actual is None


def test_operands_with_gaps():
    x, weight, bias = arguments(3, 1, 6, (12, 12), (5, 5))
    expected = few_channels_kernel.convolution(x, weight, bias)
    x, weight, bias = (torch.stack([each, each], -1)[..., 0] for each in (x, weight, bias))
    assert not x.is_contiguous()
    torch.testing.assert_close(few_channels_kernel.convolution(x, weight, bias), expected)
    grad = expected.transpose(2, 3)
    gradients = [
        few_channels_kernel.weight_gradient(g, x, (5, 5)) for g in (grad, grad.contiguous())
    ]
    torch.testing.assert_close(*gradients)
    weight = weight.transpose(2, 3)
    given = ((grad, weight), (grad.contiguous(), weight.contiguous()))
    torch.testing.assert_close(
        *(few_channels_kernel.input_gradient(*each, (12, 12)) for each in given)
    )


def test_rounding_is_that_of_a_direct_convolution():
    x, weight, bias = arguments(8, 6, 16, (12, 12), (5, 5), torch.float32)
    exact = aten.convolution(x.double(), weight.double(), bias.double(), *HOW)
    error = (
        few_channels_kernel.convolution(x, weight, bias) - exact
    ).abs().max() / exact.abs().max()
    assert error < 1e-6


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((3, 6, 17, (12, 12), (5, 5)), {}),  # too many channels
        ((3, 1, 6, (33, 28), (5, 5)), {}),  # too large an image
        ((3, 1, 6, (28, 28), (4, 6)), {}),  # too few taps
        ((3, 1, 6, (28, 28), (8, 8)), {}),  # too many
        ((3, 1, 6, (12, 7), (5, 5)), {}),  # rows of less than a vector
        ((3, 1, 6, (4, 12), (5, 5)), {}),  # no output
        ((3, 1, 6, (28, 28), (5, 5)), {0: [2, 1]}),
        ((3, 1, 6, (28, 28), (5, 5)), {1: [1, 0]}),
        ((3, 1, 6, (28, 28), (5, 5)), {2: [2, 2]}),
    ],
)
def test_what_the_rule_leaves_to_others(shape, changes):
    x, weight, _ = arguments(*shape)
    how = [changes.get(i, each) for i, each in enumerate(HOW)]
    assert not few_channels.is_faster(x, weight, *how)


def test_other_types_formats_and_machines_are_left_to_others(monkeypatch):
    x, weight, _ = arguments(3, 2, 6, (28, 28), (5, 5))
    assert few_channels.is_faster(x, weight, *HOW)
    assert not few_channels.is_faster(x.half(), weight.half(), *HOW)
    assert not few_channels.is_faster(x.to(memory_format=torch.channels_last), weight, *HOW)
    assert not few_channels.is_faster(x.to("meta"), weight.to("meta"), *HOW)
    monkeypatch.setattr(build, "is_available", lambda: False)
    assert not few_channels.is_faster(x, weight, *HOW)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[2], SHAPES[4]])
def test_bfloat16_is_computed_in_float32(shape):
    """To the bit, and rounded once."""
    x, weight, bias = (each.bfloat16() for each in arguments(*shape))
    grad = numbers(*aten.convolution(x, weight, bias, *HOW).shape, seed=3).bfloat16()
    wide = [each.float() for each in (x, weight, bias, grad)]
    assert few_channels.is_faster(x, weight, *HOW)
    assert torch.equal(
        few_channels_kernel.convolution(x, weight, bias),
        few_channels_kernel.convolution(*wide[:3]).bfloat16(),
    )
    assert torch.equal(
        few_channels_kernel.convolution(x, weight, None),
        few_channels_kernel.convolution(*wide[:2], None).bfloat16(),
    )
    side = x.shape[2:]
    gradient = few_channels_kernel.input_gradient(wide[3], wide[1], side)
    assert torch.equal(few_channels_kernel.input_gradient(grad, weight, side), gradient.bfloat16())
    gradient = few_channels_kernel.weight_gradient(wide[3], wide[0], shape[-1])
    assert torch.equal(few_channels_kernel.weight_gradient(grad, x, shape[-1]), gradient.bfloat16())


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("is_there", [True, False])
def test_weight_gradients_of_more_channels_are_left_to_avx512(inputs, is_there, monkeypatch):
    x, weight, _ = arguments(3, inputs, 6, (28, 28), (5, 5))
    monkeypatch.setattr(few_channels, "has_avx512", lambda: is_there)

    def loss(x, weight):
        return torch.nn.functional.conv2d(x, weight).square().sum()

    graph = funcnets.jit(torch.func.grad(loss, (0, 1))).trace(x, weight).graph.graph
    targets = {node.target for node in graph.nodes}
    assert few_channels_kernel.INPUT_GRADIENT in targets
    assert (few_channels_kernel.WEIGHT_GRADIENT in targets) is (inputs == 1 or not is_there)


def test_it_fires_in_a_graph():
    x, weight, bias = arguments(3, 1, 6, (28, 28), (5, 5))

    def loss(weight):
        return torch.nn.functional.conv2d(x, weight, bias).square().sum()

    jitted = funcnets.jit(torch.func.grad(loss))
    assert jitted.trace(weight).fired == {"few_channels.forward": 1, "few_channels.backward": 1}
    torch.testing.assert_close(jitted(weight), torch.func.grad(loss)(weight))


def test_what_is_not_finite_stays_in_its_tap():
    x, weight, bias = arguments(2, 2, 3, (9, 17), (7, 4))
    grad = torch.zeros_like(aten.convolution(x, weight, bias, *HOW))
    grad[0, 0, 2, 10] = torch.inf  # in two vectors of its row
    call = (grad, x, weight, None, *HOW)
    _, expected, _ = aten.convolution_backward(*call, [False, True, False])
    given = few_channels_kernel.weight_gradient(grad, x, (7, 4))
    assert torch.equal(given.isnan(), expected.isnan())
    assert torch.equal(given == torch.inf, expected == torch.inf)
