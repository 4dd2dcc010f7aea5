"""The eight networks and their blocks equal their module twins."""

import inspect
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import problem
from hypothesis import given, settings
from hypothesis import strategies as st
from registry import NETWORKS
from torch import nn

import funcnets
from funcnets import core, models, optim, random, train, tree
from funcnets.core import Layer
from funcnets.models.vgg import ARCHITECTURES
from funcnets.testing import (
    Network,
    assert_close,
    assert_equivalent,
    assert_trains_alike,
    assert_transforms_agree,
    random_values,
    strategies,
    twins,
)

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
# As torchvision documents them, for colour images and 1,000 classes.
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
@settings(max_examples=6)
def test_network_equals_its_twin(name: str, data: st.DataObject, seed: int) -> None:
    network = data.draw(strategies.networks(name))
    assert_equals_twin(network, seed=seed)


def assert_equals_twin(network: Network, **options: Any) -> None:
    once = {"batch_sizes": network.shape[:1], "memory_formats": ["contiguous"]}
    assert_equivalent(network.layer(), network.module(), network.shape, **once, **options)


@given(data=st.data(), seed=strategies.seeds)
@settings(max_examples=3)
def test_network_trains_as_its_twin(name: str, data: st.DataObject, seed: int) -> None:
    network = data.draw(strategies.networks(name))
    assert_trains_alike(network.layer(), network.module(), network.shape, seed=seed)


def test_network_equals_its_twin_alone_and_in_channels_last(name: str) -> None:
    network = NETWORKS[name]
    assert_equivalent(network.layer(), network.module(), network.shape)


@pytest.mark.parametrize(
    "whole",
    [
        Network("resnet18", {}, (3, 1, 20, 20)),
        Network("googlenet", {"divisor": 8}, (3, 1, 16, 16)),
    ],
    ids=lambda network: network.name,
)
def test_whole_network_equals_its_twin(whole: Network) -> None:
    assert_equals_twin(whole)


SLOW = pytest.mark.slow
# One with dropout, one with batch norm and shortcuts, one that joins channels.
FEW = ("nin", "resnet18", "googlenet")
few_networks = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else SLOW) for name in NETWORKS]
)


@pytest.mark.parametrize(
    ("compiled", "backend"),
    [
        # Most passes of `graph` are those of `native`, and test_verify.py runs all of them.
        *(pytest.param(each, "graph", marks=() if each in FEW else SLOW) for each in NETWORKS),
        *((each, "native") for each in NETWORKS),
        *(pytest.param(each, "inductor", marks=SLOW) for each in NETWORKS),
    ],
)
def test_compiled_network_trains_as_its_twin(compiled: str, backend: Any) -> None:
    network = NETWORKS[compiled]
    steps = 5 if backend == "graph" else 3
    compile_ = partial(funcnets.jit, backend=backend)
    layer, module = network.layer(), network.module()
    assert_trains_alike(layer, module, network.shape, steps=steps, transform=compile_)


def test_traced_network_evaluates_as_it_is(name: str) -> None:
    both = problem(NETWORKS[name].layer(), NETWORKS[name].shape)
    arguments = (both.params, both.state, both.batch[0])
    assert_transforms_agree(both.net.apply, *arguments, checks=["jit"], backends=["graph"])


@few_networks
def test_saved_step_is_the_traced_one(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    both = problem(NETWORKS[name].layer(), NETWORKS[name].shape)
    optimizer = optim.sgd(0.01)
    start = train.TrainState(
        torch.zeros((), dtype=torch.int64),
        both.params,
        both.state,
        optimizer.init(both.params),
        both.key,
    )
    step = train.make_train_step(both.net, optimizer)

    def untraced(*arguments: Any) -> Any:
        raise AssertionError("traced again")

    traced = funcnets.jit(step, backend="graph", saved_as=name)(start, both.batch)
    monkeypatch.setattr("funcnets.compiler.pipeline.trace", untraced)
    saved = funcnets.jit(step, backend="graph", saved_as=name)(start, both.batch)
    assert_close(saved, traced, 0.0)


def test_leaves_have_the_twins_names_and_shapes(name: str) -> None:
    side = models.get(name)[1].side
    with torch.device("meta"):
        network = Network(name, {}, (1, 1, side, side))
        net, module = network.layer(), network.module()
        params, state = net.init(random.key(0), torch.empty(1, 1, side, side))
    ours = {key: leaf.shape for key, leaf in tree.flatten_named((params, state)).items()}
    expected = {f"0.{key}": leaf.shape for key, leaf in module.named_parameters()}
    expected |= {f"1.{key}": leaf.shape for key, leaf in module.named_buffers() if leaf.ndim}
    assert ours == expected
    assert tree.count(params) == TOTALS[name]


@pytest.mark.parametrize("deep", VGG_TOTALS)
def test_deeper_vggs_have_the_known_sizes(deep: str) -> None:
    with torch.device("meta"):
        params, _ = getattr(models, deep)(1000).init(random.key(0), torch.empty(1, 3, 224, 224))
        module = twins.VGG(in_channels=3, num_classes=1000, arch=ARCHITECTURES[deep])
    shapes = {key: leaf.shape for key, leaf in tree.flatten_named(params).items()}
    assert shapes == {key: leaf.shape for key, leaf in module.named_parameters()}
    assert tree.count(params) == VGG_TOTALS[deep]


# The block, its twin for two input channels, and what it makes of (N, 2, 8, 8).
BLOCKS: dict[str, tuple[Layer, nn.Module, tuple[int, int, int]]] = {
    "vgg_block": (models.vgg_block(2, 5), twins.VGGBlock(2, 2, 5), (5, 4, 4)),
    "nin_block": (models.nin_block(5, 3, 2, 1), twins.NiNBlock(2, 5, 3, 2, 1), (5, 4, 4)),
    "inception_reference": (
        models.inception(2, (3, 4), (2, 5), 3),
        twins.Inception(2, 2, (3, 4), (2, 5), 3),
        (14, 8, 8),
    ),
    "inception_paper": (
        models.inception(2, (3, 4), (2, 5), 3, "paper"),
        twins.Inception(2, 2, (3, 4), (2, 5), 3, "paper"),
        (14, 8, 8),
    ),
    "residual_block": (models.residual_block(2), twins.ResidualBlock(2, 2), (2, 8, 8)),
    "residual_block_strided": (
        models.residual_block(6, 2),
        twins.ResidualBlock(2, 6, 2),
        (6, 4, 4),
    ),
    "residual_block_projected": (
        models.residual_block(6, project=True),
        twins.ResidualBlock(2, 6),
        (6, 8, 8),
    ),
    "dense_block": (models.dense_block(2, 10), twins.DenseBlock(2, 2, 10), (22, 8, 8)),
    "transition_block": (models.transition_block(10), twins.TransitionBlock(2, 10), (10, 4, 4)),
}


@pytest.mark.parametrize("block", BLOCKS)
@given(seed=strategies.seeds, batch=st.integers(1, 4))
@settings(max_examples=4)
def test_block_equals_its_twin(block: str, seed: int, batch: int) -> None:
    net, module, expected = BLOCKS[block]
    shape = (batch, 2, 8, 8)
    params, state = net.init(random.key(seed), torch.zeros(shape))
    assert core.eval_shape(net, params, state, torch.zeros(shape)).shape[1:] == expected
    assert_equivalent(net, module, shape, seed=seed, batch_sizes=shape[:1])


@pytest.mark.parametrize(
    ("block", "shape", "expected"),
    [
        (models.residual_block(3), (4, 3, 6, 6), (4, 3, 6, 6)),
        (models.residual_block(6, 2), (4, 3, 6, 6), (4, 6, 3, 3)),
        (models.dense_block(2, 10), (4, 3, 8, 8), (4, 23, 8, 8)),
        (models.transition_block(10), (4, 23, 8, 8), (4, 10, 4, 4)),
    ],
    ids=["residual", "residual_strided", "dense", "transition"],
)
def test_block_shapes(block: Layer, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    params, state = block.init(random.key(0), x)
    assert core.eval_shape(block, params, state, x).shape == expected


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ("lenet_bn", (2, 1, 12, 12), r"^conv2: .*at least 5×5"),
        ("alexnet", (2, 1, 62, 62), r"^pool5: .*at least 3×3"),
        ("vgg11", (2, 1, 16, 16), r"^block5\.pool: .*at least 2×2"),
        ("nin", (2, 1, 8, 8), r"^block1\.conv1: .*at least 11×11"),
        ("densenet", (2, 1, 16, 16), r"^transition3\.pool: .*at least 2×2"),
        ("resnet18", (2, 28, 28), r"^stem\.conv: .*expected \(N, C, H, W\)"),
    ],
)
def test_unfit_images(network: str, shape: tuple[int, ...], message: str) -> None:
    with torch.device("meta"), pytest.raises(core.LayerError, match=message):
        models.get(network)[0].init(random.key(0), torch.empty(shape))


@pytest.mark.parametrize("network", NETWORKS)
def test_no_classes(network: str) -> None:
    with pytest.raises(ValueError, match=r"(features|channels) is 0; expected .* 1 or more"):
        models.get(network, num_classes=0)


def test_one_value_per_channel_in_training() -> None:
    net, _ = models.get("lenet_bn")
    params, state = random_values(net, torch.zeros(1, 1, 28, 28), 0)
    with pytest.raises(core.LayerError, match=r"^bn3: .*one value per channel"):
        net.apply(params, state, torch.zeros(1, 1, 28, 28), train=True)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="'resnet18'"):
        models.get("resnet")
    with pytest.raises(ValueError, match="no network is called None: known are alexnet"):
        models.get(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reference"):
        models.get("lenet_bn", "referense")
    with pytest.raises(ValueError, match="paper"):
        models.inception(2, (3, 4), (2, 5), 3, "papers")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "theirs", "first"),
    [
        pytest.param("vgg13", "vgg13", 64 * 2 * 9, marks=pytest.mark.slow),
        pytest.param("vgg16", "vgg16", 64 * 2 * 9, marks=pytest.mark.slow),
        ("vgg19", "vgg19", 64 * 2 * 9),
        pytest.param("resnet34", "resnet34", 64 * 2 * 49, marks=pytest.mark.slow),
        ("resnet50", "resnet50", 64 * 2 * 49),
    ],
)
def test_larger_networks_have_the_weights_of_torchvision(name, theirs, first):
    """Weights of convolutions and linear layers; `first` are those of two more input channels."""
    from torchvision import models as torchvision_models

    side = 224
    image = torch.empty(1, 1, side, side, device="meta")
    params, _ = models.get(name)[0].init(random.key(0, "meta"), image)
    ours = sum(leaf.numel() for leaf in tree.leaves(params) if leaf.ndim > 1)
    with torch.device("meta"):
        module = getattr(torchvision_models, theirs)(num_classes=10)
    assert ours == sum(leaf.numel() for leaf in module.parameters() if leaf.ndim > 1) - first


def test_variants_are_functions_that_say_what_they_are():
    assert str(inspect.signature(models.resnet18)) == str(
        inspect.signature(partial(models.resnet, (2, 2, 2, 2)))
    )
    for name in ("resnet50", "vgg19", "googlenet_paper", "lenet_bn_scratch"):
        function = getattr(models, name)
        assert inspect.isfunction(function)
        assert (function.__name__, function.__doc__[:7]) == (name, "Return ")
        assert pickle.loads(pickle.dumps(function)) is function
