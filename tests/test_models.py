"""The eight networks and their blocks equal their module twins."""

import pytest
import strategies
import torch
from comparison import (
    assert_close,
    assert_equals_twin,
    assert_trains_alike,
    batches,
    functional_steps,
    pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from registry import NETWORKS, Network
from torch import Tensor, nn

import funcnets
from funcnets import models, random, tree

TOTALS = {
    "alexnet": 46_764_746,
    "vgg11": 128_806_154,
    "nin": 1_992_166,
    "googlenet": 2_938_298,
    "lenet_bn": 44_878,
    "lenet_bn_scratch": 44_878,
    "resnet18": 11_178_378,
    "densenet": 758_226,
}
# Torchvision's own totals, less what three input channels and 1,000 classes take.
VGG_TOTALS = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
}


@pytest.fixture(params=NETWORKS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@given(data=st.data(), seed=strategies.seeds)
@settings(max_examples=12)
def test_network_equals_its_twin(name: str, data: st.DataObject, seed: int) -> None:
    network = data.draw(strategies.NETWORKS[name])
    assert_equals_twin(pair(*network.build(), network.shape, seed))


@given(data=st.data(), seed=strategies.seeds)
@settings(max_examples=5)
def test_network_trains_as_its_twin(name: str, data: st.DataObject, seed: int) -> None:
    network = data.draw(strategies.NETWORKS[name])
    assert_trains_alike(pair(*network.build(), network.shape, seed), seed)


def test_full_width_resnet18_equals_its_twin() -> None:
    network = Network("resnet18", {}, (3, 1, 28, 28))
    assert_equals_twin(pair(*network.build(), network.shape, 0))


def test_traced_network_trains_as_its_twin(name: str) -> None:
    network = NETWORKS[name]
    traced = {"transform": lambda step: funcnets.jit(step, backend="graph")}
    assert_trains_alike(pair(*network.build(), network.shape, 0), 0, **traced)


def test_traced_network_evaluates_as_it_is(name: str) -> None:
    network = NETWORKS[name]
    both = pair(*network.build(), network.shape, 0)
    traced = funcnets.jit(both.net.apply, backend="graph")
    actual, _ = traced(both.params, both.state, both.x)
    expected, _ = both.net.apply(both.params, both.state, both.x)
    assert_close({"logits": actual}, {"logits": expected})


@pytest.mark.parametrize(
    "compiled",
    [
        name if name == "lenet_bn" else pytest.param(name, marks=pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_compiled_step_is_the_eager_one(compiled: str) -> None:
    network = NETWORKS[compiled]
    both = pair(*network.build(), network.shape, 0)
    data = batches(both, 3, 0)
    steps = functional_steps(both, data, 0.05, transform=funcnets.jit)
    for actual, expected in zip(steps, functional_steps(both, data, 0.05), strict=True):
        assert_close(actual, expected)


def on_meta(network: Network) -> tuple[dict[str, Tensor], dict[str, Tensor], nn.Module]:
    """Parameters and statistics by name, and the twin, without memory."""
    with torch.device("meta"):
        net, module = network.build()
        params, state = net.init(random.key(0), torch.empty(network.shape))
    return tree.flatten_named(params), tree.flatten_named(state), module


def test_leaves_have_the_twins_names_and_shapes(name: str) -> None:
    params, state, module = on_meta(Network(name, {}, (1, 1, models.INDEX[name][1].side, 0)))
    expected = {key: leaf.shape for key, leaf in module.named_parameters()}
    assert {key: leaf.shape for key, leaf in params.items()} == expected
    expected = {key: leaf.shape for key, leaf in module.named_buffers() if leaf.ndim}
    assert {key: leaf.shape for key, leaf in state.items()} == expected
    assert tree.count(params) == TOTALS[name]
