"""Gradients of 1×1 convolutions that read one map, together, are those of each by itself."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad

import funcnets
from funcnets import models, random, tree
from funcnets.compiler import DEFAULT
from funcnets.compiler.lowerings import layout
from funcnets.models.googlenet import STAGES

aten = torch.ops.aten
BACKWARD = aten.convolution_backward.default


INCEPTIONS = sum(map(len, STAGES.values()))


@pytest.fixture(autouse=True, scope="module")
def convolutions_by_avx512():
    """Where others are matrix products, there is nothing to join."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "has_avx512", lambda: True)
        yield


def numbers(*shape, seed=0):
    return random.normal(random.key(seed), shape, torch.float64)


def weights(channels, *outputs, kernel=1):
    return [numbers(n, channels, kernel, kernel, seed=n + i) for i, n in enumerate(outputs)]


def block(x, kernels, stride=1):
    """Branches of one map, a pool beside them, and what follows on the map itself."""
    x = x.sin()
    branches = [F.conv2d(x, weight, stride=stride).relu() for weight in kernels]
    return torch.cat([*branches, F.max_pool2d(x, 3, 1, 1)[..., ::stride, ::stride]], 1)


def loss(x, kernels, stride=1):
    return (block(x, kernels, stride) * block(x, kernels, stride).cos()).sum()


def both(function, *arguments):
    """The graph of a function, which gives what the function gives."""
    jitted = funcnets.jit(function, backend="graph")
    expected = function(*arguments)
    tree.map(
        lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9),
        *(jitted(*arguments), expected),
    )
    return jitted.trace(*arguments)


def convolutions(trace):
    return len(trace.graph.graph.find_nodes(op="call_function", target=BACKWARD))


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(3, 7),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.sampled_from([0, 1, (0, 1)]),
)
def test_gradients(outputs, channels, side, memory_format, argnums):
    x = numbers(2, channels, side, side).to(memory_format=memory_format)
    trace = both(grad(loss, argnums), x, weights(channels, *outputs))
    small = side**2 <= 4
    of_weights = argnums != 0 and len(outputs) > 1 and not small
    assert trace.fired.get("siblings", 0) == 2 * of_weights


def test_both_gradients_are_one_convolution_each():
    x, kernels = numbers(2, 9, 6, 6), weights(9, 8, 9, 3)
    together = both(grad(loss, (0, 1)), x, kernels)
    assert convolutions(together) == 2 * 2
    apart = funcnets.jit(grad(loss, (0, 1)), lowerings=None).trace(x, kernels)
    assert convolutions(apart) == 2 * 3
    assert "siblings" not in apart.fired


@pytest.mark.parametrize(("padding", "kernel"), [(1, 1), (0, 3)])
def test_other_convolutions_stay_apart(padding, kernel):
    def loss(x, kernels):
        return sum(F.conv2d(x, weight, padding=padding).cos().sum() for weight in kernels)

    trace = both(grad(loss, 1), numbers(2, 5, 7, 7), weights(5, 8, 9, kernel=kernel))
    assert convolutions(trace) == 2
    assert "siblings" not in trace.fired


def test_a_gradient_that_is_read_alone_stays():
    """That of one branch's input is a result too, so that their sum can't be made at once."""

    def function(x, first, second):
        g = torch.func.grad(lambda y: F.conv2d(y, first).cos().sum())(x)
        h, of_weights = torch.func.grad(
            lambda y, w: sum(F.conv2d(y, each).cos().sum() for each in w), (0, 1)
        )(x, (first, second))
        return g, g + h, of_weights

    trace = both(function, numbers(2, 5, 6, 6), *weights(5, 8, 9))
    assert trace.fired["siblings"] == 1


def test_what_writes_stays_in_order():
    def function(x, kernels):
        gradients = grad(loss, 1)(x, kernels)
        total = x.clone()
        before = total.sum()
        total.add_(1)
        return gradients, before, total

    trace = both(function, numbers(2, 5, 6, 6), weights(5, 8, 9))
    assert "siblings" not in trace.fired


def test_googlenet():
    net, recipe = models.get("googlenet")
    x = numbers(2, 1, recipe.side, recipe.side)
    params, state = net.init(random.key(0), x)

    def gradient(params):
        return grad(lambda params: net.apply(params, state, x, train=True)[0].square().sum())(
            params
        )

    fired = funcnets.jit(gradient).trace(params).fired
    assert fired["siblings"] == 9


def test_nothing_is_joined_without_lowerings():
    x, kernels = numbers(2, 5, 6, 6), weights(5, 8, 9)
    for lowerings, fires in ((DEFAULT, True), ((), False)):
        trace = funcnets.jit(grad(loss, 1), lowerings=lowerings).trace(x, kernels)
        assert ("siblings" in trace.fired) is fires
