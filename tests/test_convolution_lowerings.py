"""What is special about single lowerings of convolutions; test_lowerings.py has what all share."""

import pytest
import torch
from hypothesis import given, settings
from lowering_cases import DENSE
from lowering_rows import convolution, derivative
from tensors import channels_last, numbers
from torch.func import grad, vmap

import funcnets
from funcnets import layers, models, optim, random, train, tree
from funcnets.compiler.kernels import few_channels as few_channels_kernel
from funcnets.compiler.kernels import one_channel as one_channel_kernel
from funcnets.compiler.kernels.geometry import geometry
from funcnets.compiler.lowerings import bfloat16, dense, few_channels, one_channel
from funcnets.precision import POLICIES

aten = torch.ops.aten


@settings(max_examples=settings.default.max_examples // 5)
@given(DENSE.variants["1×1"].calls)
def test_scatter_is_the_adjoint_of_gather(call):
    x, weight, _, stride, padding, *_ = call.arguments
    shape = geometry(x, weight, stride, padding)
    matrix = dense.gather_taps(weight, shape)
    other = numbers(*matrix.shape, seed=9)
    left = (matrix * other).sum()
    right = (weight * dense.scatter_taps(other, weight, shape)).sum()
    torch.testing.assert_close(left, right)


def test_a_trace_tells_which_took_part():
    net = funcnets.sequential(
        conv=layers.conv2d(3, 3, padding=1), tanh=layers.tanh(), pool=layers.global_avg_pool()
    )
    x = numbers(2, 3, 1, 1)
    params, _ = net.init(random.key(0), x)
    gradient = grad(lambda params: net.apply(params, {}, x)[0].sum())
    fired = funcnets.jit(gradient).trace(params).fired
    assert fired == {"dense.forward": 1, "dense.backward": 1}
    traced = funcnets.jit(gradient, lowerings=None).trace(params)
    assert traced.fired == {}
    assert "convolution" in str(traced)


def test_mapped_convolutions_are_split_and_each_is_lowered():
    conv = layers.conv2d(3, 3, padding=1)
    x = numbers(3, 2, 2, 1, 1)
    keys = random.split(random.key(0), 3)
    params = tree.transpose([conv.init(key, x[0])[0] for key in keys])
    each = vmap(lambda params, x: conv.apply(params, {}, x)[0])
    fired = funcnets.jit(each).trace(params, x).fired
    assert fired == {"grouped.forward": 1, "dense.forward": 3}
    torch.testing.assert_close(funcnets.jit(each, backend="graph")(params, x), each(params, x))


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("has_avx512", [True, False])
def test_weight_gradients_of_several_channels_are_left_to_avx512(inputs, has_avx512, monkeypatch):
    monkeypatch.setattr(few_channels, "has_avx512", lambda: has_avx512)
    x, weight = numbers(3, inputs, 12, 12), numbers(6, inputs, 5, 5, seed=1)
    gradient = grad(lambda x, weight: torch.conv2d(x, weight).square().sum(), (0, 1))
    graph = funcnets.jit(gradient).trace(x, weight).graph.graph
    targets = {node.target for node in graph.nodes}
    assert few_channels_kernel.INPUT_GRADIENT in targets
    uses_kernel = inputs == 1 or not has_avx512
    assert (few_channels_kernel.WEIGHT_GRADIENT in targets) is uses_kernel


def test_an_infinite_gradient_stays_in_its_taps():
    call = convolution((2, 2, 9, 17), (3, 2, 7, 4)).arguments
    gradient = torch.zeros_like(aten.convolution(*call))
    gradient[0, 0, 2, 10] = torch.inf  # in both of two vectors that overlap
    x, weight, _, *how = call
    mask = [False, True, False]
    _, expected, _ = aten.convolution_backward(gradient, x, weight, None, *how, mask)
    actual = few_channels_kernel.weight_gradient(gradient, x, (7, 4))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual == torch.inf, expected == torch.inf)


def test_many_pixels_are_summed_precisely():
    """In float32, to two parts in a million."""
    x, gradient = (random.uniform(random.key(i), (16, n, 96, 96)) for i, n in ((0, 1), (1, 32)))
    call = convolution((1, 1, 3, 3), (32, 1, 3, 3), padding=1, bias=False).arguments
    given = gradient.double(), x.double(), call[1], None, *call[3:], [False, True, False]
    _, exact, _ = aten.convolution_backward(*given)
    actual = one_channel_kernel.weight_gradient(gradient, x, (3, 3), (1, 1), (1, 1))
    assert (actual - exact).abs().max() < 2e-6 * exact.abs().max()


def test_convolutions_of_one_channel_take_any_format_and_are_left_to_avx512(monkeypatch):
    monkeypatch.setattr(one_channel, "has_avx512", lambda: False)
    call = convolution((2, 1, 28, 28), (64, 1, 7, 7), stride=2, padding=3)
    assert call.map(channels_last).of(one_channel.FORWARD.applies)[0]
    monkeypatch.setattr(one_channel, "has_avx512", lambda: True)
    assert not call.of(one_channel.FORWARD.applies)[0]


def test_an_ensemble_on_one_batch_is_one_convolution(monkeypatch):
    """To the channels of all members."""
    monkeypatch.setattr(one_channel, "has_avx512", lambda: False)
    x, weights = numbers(3, 1, 14, 14), numbers(4, 32, 1, 7, 7, seed=1)
    outputs = vmap(lambda weight: torch.conv2d(x, weight))
    jitted = funcnets.jit(outputs)
    assert jitted.trace(weights).fired == {"one_channel.forward": 1}
    torch.testing.assert_close(jitted(weights), outputs(weights), rtol=1e-11, atol=1e-11)


def test_a_step_in_bfloat16_multiplies_in_float32_by_the_lowerings_of_float32(monkeypatch):
    monkeypatch.setattr(bfloat16, "has_bfloat16", lambda: False)
    net, _ = models.get("lenet_bn")
    x = random.uniform(random.key(1), (128, 1, 28, 28))
    optimizer = optim.sgd(0.1)
    train_state = train.create(net, optimizer, random.key(0), x)
    batch = (x, torch.arange(128) % 10)
    step = train.make_train_step(net, optimizer, policy=POLICIES["bfloat16"])
    jitted = funcnets.jit(step, backend="graph")
    fired = jitted.trace(train_state, batch).fired.keys()
    assert {"bfloat16.convolution", "bfloat16.addmm", "bfloat16.mm"} <= fired
    assert "few_channels.forward" in fired
    plain = funcnets.jit(step, backend="graph", lowerings=None)
    after, expected = jitted(train_state, batch), plain(train_state, batch)
    assert float(after[1]["loss"]) == pytest.approx(float(expected[1]["loss"]), rel=2**-7)


def test_gradients_that_are_not_wanted_are_none():
    call = derivative(DENSE, DENSE.variants["1×1"].example, (False, False, False))
    assert call.of(dense.backward) == [None, None, None]
