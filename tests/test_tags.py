"""Tags: what transforms know of a layer, a user's own layers as well as those of the package."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from classifiers import gradients, one_by_one, problem, whole
from torch import Tensor

from funcnets import core, layers, parallel, random, transforms, tree
from funcnets.core import Layer, LayerError, sequential
from funcnets.testing import assert_close


@dataclass(frozen=True)
class Note:
    text: str


def unchanged(inner: core.Apply) -> core.Apply:
    return inner


def noted(layer: Layer, text: str) -> Layer:
    return core.wrap(layer, unchanged, tags=[Note(text)])


def test_a_layer_has_at_most_one_tag_of_each_type() -> None:
    layer = noted(noted(layers.batch_norm(), "first"), "second")
    assert layer.tag(Note) == Note("second")
    assert len(layer.tags) == 2
    assert layers.relu().tag(Note) is None


def test_tags_stay_when_parts_are_rewritten_and_do_not_reach_other_layers() -> None:
    net = sequential(a=noted(sequential(b=layers.relu()), "a"), c=layers.relu())
    again = core.rewrite(net, lambda name, layer: noted(layer, "b") if name == "a.b" else layer)
    assert again.tag(Note) is None
    assert again.children["a"].tag(Note) == Note("a")
    assert again.children["a"].children["b"].tag(Note) == Note("b")
    assert again.children["c"].tag(Note) is None


def test_tags_are_no_part_of_a_comparison() -> None:
    layer = layers.relu()
    assert core.wrap(layer, unchanged, tags=[Note("x")]) == layer
    assert hash(core.wrap(layer, unchanged, tags=[[]])) == hash(layer)


def own_norm() -> Layer:
    """A batch norm without scale and shift, whose state has other names and holds a count."""

    def init(key: Tensor, x: Tensor) -> tuple[Any, Any]:
        zeros = torch.zeros(x.shape[1], dtype=x.dtype)
        return {}, {"centre": zeros, "spread": zeros + 1, "batches": torch.zeros(())}

    def update(state: Any, mean: Tensor, variance: Tensor, count: int) -> Any:
        return {
            "centre": state["centre"] * 0.5 + mean / 2,
            "spread": state["spread"] * 0.5 + variance / 2 * count / (count - 1),
            "batches": state["batches"] + 1,
        }

    def as_state(mean: Tensor, variance: Tensor) -> Any:
        return {"centre": mean, "spread": variance, "batches": torch.ones(())}

    def apply(params: Any, state: Any, x: Tensor, *, train: bool = False, key: Any = None) -> Any:
        used = state
        if train:
            moments = layers.channel_statistics(x)
            used = as_state(*moments)
            state = update(state, *moments, x.numel() // x.shape[1])
        channel = (..., *[None] * (x.ndim - 2))
        y = (x - used["centre"][channel]) / (used["spread"][channel] + 1e-3).sqrt()
        return y, state

    tags = (layers.BatchStatistics(update, as_state),)
    return Layer("own_norm", init, apply, tags=tags)


def own_noise(*tags: object) -> Layer:
    """Multiplication by normal numbers around 1, in training."""

    def apply(params: Any, state: Any, x: Tensor, *, train: bool = False, key: Any = None) -> Any:
        return (x * (1 + random.normal(key, tuple(x.shape), x.dtype)) if train else x), {}

    return Layer("own_noise", lambda key, x: ({}, {}), apply, stochastic=True, tags=tags)


def network(noise: Layer) -> Layer:
    return sequential(
        conv=layers.conv2d(3, 3),
        norm=own_norm(),
        act=layers.tanh(),
        flatten=layers.flatten(),
        block=sequential(noise=noise, fc=layers.linear(3)),
    )


TAGGED = problem(network(own_noise(layers.MultiplicativeNoise())))


@pytest.mark.parametrize("size", [2, 5])
def test_accumulation_of_own_layers_is_the_whole_batch(size: int) -> None:
    assert_close(gradients(transforms.accumulate(size), TAGGED), whole(TAGGED))


def test_per_example_gradients_of_own_layers_are_those_of_the_whole_batch() -> None:
    net, params, state, batch, key = TAGGED
    each = transforms.per_example_gradients(net, params, state, batch, key=key, statistics="batch")
    constant = transforms.per_example_gradients(
        net, params, state, batch, key=key, statistics="batch_constant"
    )
    expected, losses = one_by_one(TAGGED)
    assert_close(tree.flatten_named(each.gradients), tree.flatten_named(expected))
    for result in (each, constant):
        assert_close({"losses": result.losses}, {"losses": losses})
        assert result.state["norm"]["batches"] == state["norm"]["batches"] + 1


def test_own_statistics_can_be_frozen() -> None:
    net, params, state, (x, _), key = TAGGED
    frozen = transforms.frozen_statistics(
        sequential(**{k: net.children[k] for k in ("conv", "norm")})
    )
    actual = frozen.apply(params, state, x, train=True, key=key)
    expected = frozen.apply(params, state, x)
    assert_close(tree.flatten_named(actual), tree.flatten_named(expected))


@pytest.mark.parametrize("gradient", [transforms.accumulate(2), transforms.per_example("frozen")])
def test_random_layers_of_unknown_effect_are_refused_by_name(gradient: Any) -> None:
    unknown = problem(network(own_noise()))
    with pytest.raises(LayerError, match=r"^block\.noise: own_noise: .*MultiplicativeNoise\(\)"):
        gradients(gradient, unknown)


def untagged(layer: Layer) -> Layer:
    return Layer("own_norm", layer.init, layer.apply)


UNKNOWN = problem(sequential(flatten=layers.flatten(), block=sequential(norm=untagged(own_norm()))))


@pytest.mark.parametrize(
    "gradient",
    [
        transforms.accumulate(2),
        transforms.accumulate(2, statistics="micro_batch"),
        *map(transforms.per_example, (None, "frozen", "batch_constant", "batch")),
    ],
)
def test_batch_norms_without_a_tag_are_refused_by_name(gradient: Any) -> None:
    message = r"^block\.norm: own_norm: .*changes its state \(batches, .*layers\.BatchStatistics"
    with pytest.raises(LayerError, match=message):
        gradients(gradient, UNKNOWN)
    with pytest.raises(LayerError, match=message):
        transforms.frozen_statistics(UNKNOWN.net).apply(*UNKNOWN[1:3], UNKNOWN.batch[0], train=True)


def test_batch_norms_without_a_tag_are_not_synchronized() -> None:
    two: Any = SimpleNamespace(size=2)
    net = parallel.synchronize(UNKNOWN.net, two)
    with pytest.raises(LayerError, match=r"^block\.norm: own_norm: .*changes its state"):
        net.apply(*UNKNOWN[1:3], UNKNOWN.batch[0], train=True)
    net.apply(*UNKNOWN[1:3], UNKNOWN.batch[0])


def test_a_layer_that_keeps_its_state_needs_no_tag() -> None:
    def apply(params: Any, state: Any, x: Tensor, *, train: bool = False, key: Any = None) -> Any:
        return x * state["scale"], dict(state)

    scaled = Layer("scaled", lambda key, x: ({}, {"scale": torch.tensor(2.0).double()}), apply)
    given = problem(sequential(flatten=layers.flatten(), scaled=scaled, fc=layers.linear(3)))
    assert_close(gradients(transforms.accumulate(2), given), whole(given))


def test_a_random_layer_that_hides_its_parts_is_refused() -> None:
    hidden = own_noise()
    hiding = Layer("hiding", hidden.init, hidden.apply, (("noise", hidden),), stochastic=True)
    with pytest.raises(LayerError, match=r"^block\.noise: hiding: .*MultiplicativeNoise\(\)"):
        gradients(transforms.accumulate(2), problem(network(hiding)))
