"""Lowerings equal the ATen operations that they replace, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import funcnets
from funcnets import layers, random
from funcnets.compiler.kernels.geometry import geometry
from funcnets.compiler.lowerings import dense

aten = torch.ops.aten
REST = ([1, 1], False, [0, 0], 1)
sides = st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (3, 1)])
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def cases(draw):
    """Input, weight, bias, stride and padding of a convolution on a tiny map.

    Where the rule says no, the rewrite is slower and as right.
    """
    side, padding = draw(sides), draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    kernel = [
        draw(st.integers(1, min(5, extent + 2 * p)))
        for extent, p in zip(side, padding, strict=True)
    ]
    inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    batch = draw(st.sampled_from([1, 2, 3, dense.MIN_LARGE_BATCH]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(batch, inputs, *side, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
    return x, weight, bias, list(draw(pairs)), list(padding)


@given(cases(), st.booleans())
def test_forward(case, with_bias):
    x, weight, bias, stride, padding = case
    arguments = (x, weight, bias if with_bias else None, stride, padding, *REST)
    torch.testing.assert_close(dense.forward(*arguments), aten.convolution(*arguments))


@given(cases(), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_backward(case, mask):
    x, weight, bias, stride, padding = case
    output = aten.convolution(x, weight, bias, stride, padding, *REST)
    cotangent = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).view(output.shape)
    arguments = (cotangent, x, weight, list(bias.shape), stride, padding, *REST, list(mask))
    results = zip(dense.backward(*arguments), aten.convolution_backward(*arguments), strict=True)
    for (actual, expected), wanted in zip(results, mask, strict=True):
        if wanted:
            torch.testing.assert_close(actual, expected)
        else:
            assert actual is None


@given(cases())
def test_scatter_is_the_adjoint_of_gather(case):
    x, weight, _, stride, padding = case
    shape = geometry(x, weight, stride, padding)
    matrix = dense.gather_taps(weight, shape)
    other = torch.sin(torch.arange(matrix.numel(), dtype=torch.float64)).view(matrix.shape)
    left = (matrix * other).sum()
    right = (weight * dense.scatter_taps(other, weight, shape)).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("side", "kernel", "how"),
    [
        (1, 1, ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        (3, 3, ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
        (2, 3, ([1, 1], [1, 1], [1, 1], False, [0, 0], 2)),
        (2, 2, ([1, 1], [2, 2], [2, 2], False, [0, 0], 1)),
        (2, 3, ([1, 1], [1, 1], [1, 1], True, [0, 0], 1)),
        (2, 3, ([1, 1], [2, 2], [1, 1], False, [0, 0], 1)),
        (2, 3, ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
    ],
    ids=[
        "1×1 kernel",
        "9 pixels",
        "groups",
        "dilation",
        "transposed",
        "16 output pixels",
        "small batch",
    ],
)
def test_the_rule_says_no(side, kernel, how):
    assert not dense.is_faster(
        torch.zeros(2, 4, side, side), torch.zeros(4, 4, kernel, kernel), *how
    )


@pytest.mark.parametrize(
    ("batch", "side", "stride"), [(2, 1, 1), (2, 2, 2), (dense.MIN_LARGE_BATCH, 2, 1)]
)
def test_the_rule_says_yes(batch, side, stride):
    x, weight = torch.zeros(batch, 4, side, side), torch.zeros(4, 4, 3, 3)
    assert dense.is_faster(x, weight, [stride, stride], [1, 1], *REST)


def network():
    net = funcnets.sequential(
        conv=layers.conv2d(3, 3, padding=1), tanh=layers.tanh(), pool=layers.global_avg_pool()
    )
    x = random.normal(random.key(1), (2, 3, 1, 1), torch.float64)
    return net, net.init(random.key(0), x)[0], x


def test_a_trace_tells_which_took_part():
    net, params, x = network()
    gradient = torch.func.grad(lambda params: net.apply(params, {}, x)[0].sum())
    fired = funcnets.jit(gradient).trace(params).fired
    assert fired == {"dense.forward": 1, "dense.backward": 1}
    traced = funcnets.jit(gradient, lowerings=None).trace(params)
    assert traced.fired == {}
    assert "convolution" in str(traced)


def test_under_second_derivatives_and_vmap():
    net, params, x = network()

    def loss(params, x):
        return net.apply(params, {}, x)[0].square().sum()

    def product(params, x):
        gradient = torch.func.grad(loss)
        return torch.func.jvp(lambda p: gradient(p, x), (params,), (params,))[1]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    for function, value in ((product, x), (each, x[:, None])):
        expected = function(params, value)
        actual = funcnets.jit(function, backend="graph")(params, value)
        torch.testing.assert_close(actual, expected)
