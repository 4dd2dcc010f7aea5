"""Grouped convolutions one group at a time equal the ATen operations, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import funcnets
from funcnets import layers, random
from funcnets.compiler.lowerings import grouped

aten = torch.ops.aten
pairs = st.tuples(st.integers(1, 2), st.integers(1, 2)).map(list)


@st.composite
def cases(draw):
    """Input, weight, bias and the rest of a convolution of some groups."""
    groups, inputs, outputs, batch = (draw(st.integers(1, 4)) for _ in range(4))
    kernel, sides = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    stride, padding, dilation = (draw(pairs) for _ in range(3))
    padding = [least + 2 * (k - 1) for least, k in zip(padding, kernel, strict=True)]
    shapes = ((batch, groups * inputs, *sides), (groups * outputs, inputs, *kernel))
    keys = random.split(random.key(draw(st.integers(0, 1000))), 3)
    x, weight, bias = (
        random.normal(key, shape, torch.float64)
        for key, shape in zip(keys, (*shapes, (groups * outputs,)), strict=True)
    )
    return x, weight, bias, stride, padding, dilation, False, [0, 0], groups


@given(cases(), st.booleans())
def test_forward(case, with_bias):
    x, weight, bias, *how = case
    arguments = (x, weight, bias if with_bias else None, *how)
    torch.testing.assert_close(grouped.forward(*arguments), aten.convolution(*arguments))


@given(cases(), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_backward(case, mask):
    x, weight, bias, *how = case
    output = aten.convolution(*case)
    cotangent = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).view(output.shape)
    arguments = (cotangent, x, weight, list(bias.shape), *how, list(mask))
    results = zip(grouped.backward(*arguments), aten.convolution_backward(*arguments), strict=True)
    for (actual, expected), wanted in zip(results, mask, strict=True):
        if wanted:
            torch.testing.assert_close(actual, expected)
        else:
            assert actual is None


@pytest.mark.parametrize(
    ("side", "inputs", "outputs", "groups", "expected"),
    [
        (1, 8, 16, 4, True),
        (9, 8, 16, 4, False),
        (1, 8, 16, 1, False),
        (1, 2, 2, 65, False),
        (1, 1, 6, 4, False),
    ],
    ids=["tiny map", "81 pixels", "one group", "many groups", "depthwise"],
)
def test_the_rule(side, inputs, outputs, groups, expected):
    x = torch.zeros(2, groups * inputs, side, side)
    weight = torch.zeros(groups * outputs, inputs, 3, 3)
    how = ([1, 1], [1, 1], [1, 1], False, [0, 0], groups)
    assert grouped.is_faster(x, weight, *how) == expected


def test_vmapped_convolutions_are_split_and_lowered_on():
    conv = layers.conv2d(3, 3, padding=1)
    x = random.normal(random.key(1), (3, 2, 2, 1, 1), torch.float64)
    keys = random.split(random.key(0), 3)
    params = funcnets.tree.transpose([conv.init(key, x[0])[0] for key in keys])
    each = torch.func.vmap(lambda params, x: conv.apply(params, {}, x)[0])
    fired = funcnets.jit(each).trace(params, x).fired
    assert fired == {"grouped.forward": 1, "dense.forward": 3}
    torch.testing.assert_close(funcnets.jit(each, backend="graph")(params, x), each(params, x))


def test_a_layer_of_groups_under_vmap_and_grad():
    conv = layers.conv2d(6, 3, padding=1, groups=2)
    x = random.normal(random.key(1), (2, 4, 1, 1), torch.float64)
    params, _ = conv.init(random.key(0), x)

    def loss(params, x):
        return conv.apply(params, {}, x)[0].square().sum()

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    expected = gradient(params, x[:, None])
    actual = funcnets.jit(gradient, backend="graph")(params, x[:, None])
    torch.testing.assert_close(actual, expected)
