"""What holds for every layer, block and network, checked over the registry."""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from registry import ENTRIES, IMAGES, NETWORKS, Entry
from torch import Tensor

import funcnets
from funcnets import core, interop, layers, random, transforms
from funcnets.core import LayerError, sequential
from funcnets.testing import check_layer, random_like, random_values

KEY = random.key(7)


@pytest.mark.parametrize("name", ENTRIES)
def test_registered_layers_keep_the_promises_of_all_layers(name: str) -> None:
    entry = ENTRIES[name]
    options = {"without_gradient": entry.shifted_away, "any_rank": entry.any_rank}
    check_layer(entry.layer, entry.shape, **options)


def test_registry_has_every_constructor() -> None:
    """A layer that is added has to be registered."""
    used = {
        part.kind.split("(")[0] for entry in ENTRIES.values() for part in every_part(entry.layer)
    }
    annotations = {
        name: getattr(value, "__annotations__", {})
        for name, value in vars(layers).items()
        if callable(value)
    }
    constructors = {  # they return a layer, and take none, as `noise_of_rows` does
        name
        for name, types in annotations.items()
        if [key for key, value in types.items() if value is core.Layer] == ["return"]
    }
    assert constructors - {"leaf", "function_layer"} <= used


def every_part(layer: core.Layer) -> list[core.Layer]:
    return [layer, *(below for _, part in layer.parts for below in every_part(part))]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("swapped", r"^conv: conv2d\(2, 1\): its part of params is \[\], without 'weight': "),
        ("state", r"^bn: batch_norm\(\): its part of state is \[\], without 'running_mean': "),
        ("mean", r"^bn: .* state is \['running_var'\], without 'running_mean': "),
        ("bias", r"^bn: batch_norm\(\): its part of params is \['weight'\], without 'bias': "),
    ],
)
def test_the_tree_that_lacks_a_leaf_is_named(lost: str, message: str) -> None:
    net = sequential(conv=layers.conv2d(2, 1), bn=layers.batch_norm())
    x = torch.ones(2, 3, 1, 1)
    params, state = net.init(KEY, x)
    given = {
        "swapped": (state, params),
        "state": (params, {}),
        "mean": (params, {"bn": {"running_var": state["bn"]["running_var"]}}),
        "bias": (params | {"bn": {"weight": params["bn"]["weight"]}}, state),
    }[lost]
    with pytest.raises(LayerError, match=message):
        net.apply(*given, x, train=True)


@pytest.mark.parametrize("other", NETWORKS)
@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_of_another_network(network: str, other: str) -> None:
    if network.removesuffix("_scratch") == other.removesuffix("_scratch"):
        pytest.skip("has leaves of the same names and shapes")
    x, (params, state) = example(ENTRIES[network]), values(ENTRIES[other])
    with pytest.raises(LayerError, match=r"^\w+"):
        ENTRIES[network].layer.apply(params, state, x)


def example(entry: Entry) -> Tensor:
    return random_like(torch.empty(entry.shape, dtype=torch.float64), 0)


@cache
def values(entry: Entry) -> tuple[Any, Any]:
    return random_values(entry.layer, example(entry))


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (layers.conv2d(3, 3), torch.zeros(1, 4, 2, 5), "at least 3×3"),
        (layers.conv2d(3, 3, dilation=2), torch.zeros(1, 4, 4, 9), "at least 5×5"),
        (layers.max_pool(3), torch.zeros(1, 4, 5, 2), "at least 3×3"),
        (layers.avg_pool((2, 4), padding=(0, 1)), torch.zeros(1, 4, 1, 9), "at least 2×2"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_image_too_small(layer: core.Layer, x: Tensor, message: str) -> None:
    params, state = layer.init(KEY, x)
    with pytest.raises(LayerError, match=message):
        layer.apply(params, state, x)


@pytest.mark.parametrize("groups", [2, 3])
def test_impossible_groups(groups: int) -> None:
    with pytest.raises(LayerError, match=r"^conv: conv2d.*multiple of groups"):
        sequential(conv=layers.conv2d(3, 1, groups=groups)).init(KEY, torch.zeros(1, 4, 5, 5))


@pytest.mark.parametrize(
    ("make", "arguments", "options", "message"),
    [
        (layers.conv2d, (0, 1), {}, r"^conv2d\(0, 1\): channels is 0; .* whole number, 1 or more"),
        (layers.conv2d, (6.5, 1), {}, "channels is 6.5"),
        (layers.conv2d, (6, "a"), {}, "kernel is 'a'; expected a whole number or two, 1 or more"),
        (layers.conv2d, (6, (3, 3, 3)), {}, r"kernel is \(3, 3, 3\)"),
        (layers.conv2d, (6, 3), {"stride": 0}, r"^conv2d\(6, 3, stride=0\): stride is 0"),
        (layers.conv2d, (6, 3), {"padding": (0, -1)}, r"padding is \(0, -1\); .*, 0 or more"),
        (layers.conv2d, (6, 3), {"padding": True}, "padding is True"),
        (layers.conv2d, (6, 3), {"dilation": 0}, "dilation is 0"),
        (layers.conv2d, (6, 3), {"groups": 0}, "groups is 0"),
        (layers.linear, (0,), {}, r"^linear\(0\): features is 0; expected a whole number"),
        (layers.linear, ("a",), {}, "features is 'a'"),
        (layers.linear, (2.5,), {}, "features is 2.5"),
        (layers.batch_norm, (2,), {}, "momentum is 2; expected a number from 0 to 1"),
        (layers.batch_norm, (float("nan"),), {}, "momentum is nan"),
        (layers.batch_norm, (), {"eps": -1}, "eps is -1; expected a finite number, 0 or more"),
        (layers.batch_norm, (None,), {}, "momentum is None"),
        (layers.dropout, (-0.1,), {}, "rate is -0.1"),
        (layers.dropout, (1.0,), {}, "rate is 1.0"),
        (layers.dropout, ("a",), {}, "rate is 'a'"),
        (layers.max_pool, (0,), {}, r"^max_pool\(0\): kernel is 0"),
        (layers.avg_pool, (2,), {"stride": 0}, "stride is 0"),
        (
            layers.avg_pool,
            (2,),
            {"padding": 2},
            "padding is 2; expected half of the kernel or less",
        ),
        (layers.adaptive_avg_pool, (-1,), {}, "size is -1"),
    ],
)
def test_impossible_options(make: Any, arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(*arguments, **options)


class Scale(NamedTuple):
    """A leaf of one's own, and how it is declared."""

    params: Any = {"scale": lambda x: x.shape[1:2]}  # noqa: RUF012
    ranks: tuple[int, ...] = (2, 4)
    stochastic: bool = False

    def layer(self) -> core.Layer:
        def init(key: Tensor, x: Tensor) -> Any:
            return {"scale": torch.ones(x.shape[1], dtype=x.dtype)}, {}

        def apply(params: Any, state: Any, x: Tensor, *, train: bool = False, key: Any = None):
            return x * params["scale"].view(-1, *[1] * (x.ndim - 2)), {}

        return layers.leaf("scale()", init, apply, **self._asdict())


@pytest.mark.parametrize(
    ("scale", "x", "options", "message"),
    [
        (Scale(), torch.ones(2, 3, 4), {}, r"\(2, 3, 4\), expected \(N, C\) or"),
        (Scale(ranks=(7,)), torch.ones(2, 3), {}, "expected 7 dimensions"),
        (
            Scale(),
            torch.ones(2, 4),
            {},
            r"its scale has shape \(3,\), expected \(4,\) for an input",
        ),
        (Scale(), torch.ones(2, 3).double(), {}, "float64 input and torch.float32 weights"),
        (Scale(params=("scale", "shift")), torch.ones(2, 3), {}, r"\['scale'\], without 'shift'"),
        (Scale(stochastic=True), torch.ones(2, 3), {"train": True}, "needs a key in training"),
    ],
)
def test_an_own_leaf_is_checked(scale: Scale, x: Tensor, options: Any, message: str) -> None:
    params, _ = Scale().layer().init(KEY, torch.ones(1, 3))
    with pytest.raises(LayerError, match=rf"^outer\.inner: scale\(\): .*{message}"):
        sequential(outer=sequential(inner=scale.layer())).apply(
            {"outer": {"inner": params}}, {}, x, **options
        )
    assert torch.equal(Scale().layer().apply(params, {}, torch.ones(2, 3))[0], torch.ones(2, 3))


def test_impossible_leaves() -> None:
    with pytest.raises(ValueError, match=r"^scale\(\): ranks is \(0,\); expected whole numbers"):
        Scale(ranks=(0,)).layer()
    with pytest.raises(TypeError, match=r"^x: apply is 3; expected a function"):
        layers.leaf("x", lambda key, x: ({}, {}), 3)  # type: ignore[arg-type]


def test_dropout_is_its_documented_mask() -> None:
    x = random_like(torch.empty(IMAGES, dtype=torch.float64), 0)
    output, _ = layers.dropout(0.4).apply({}, {}, x, train=True, key=KEY)
    mask = random.bernoulli(KEY, 0.6, x.shape)
    assert torch.equal(output, torch.where(mask, x / 0.6, 0.0)) or torch.allclose(
        output, torch.where(mask, x / 0.6, 0.0), rtol=1e-15
    )
    unchanged, _ = layers.dropout(0.0).apply({}, {}, x, train=True)
    assert torch.equal(unchanged, x)


@pytest.mark.parametrize("how", ["apply", "module", "jit"])
def test_autocast_casts_as_it_does_for_modules(how):
    net = funcnets.sequential(a=layers.conv2d(4, 3), act=layers.relu(), b=layers.conv2d(4, 3))
    x = torch.rand(2, 1, 8, 8)
    params, state = net.init(random.key(0), x)
    calls = {
        "apply": lambda x: net.apply(params, state, x)[0],
        "module": interop.to_module(net, params, state),
        "jit": funcnets.jit(lambda x: net.apply(params, state, x)[0], backend="graph"),
    }
    twin = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    twin[0].load_state_dict(params["a"])
    twin[2].load_state_dict(params["b"])
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = calls[how](x), twin(x)
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected)


def test_images_in_nhwc_are_told_to_be_permuted():
    net = layers.conv2d(4, 3)
    params, state = net.init(random.key(0), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got 8 channels, expected 3 .*x\.permute\(0, 3, 1, 2\)"):
        net.apply(params, state, torch.rand(1, 8, 8, 3))


def test_per_example_gradients_of_a_module_are_refused():
    batch = (torch.rand(2, 3), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"the network: got Linear\(.*expected a Layer"):
        transforms.per_example_gradients(torch.nn.Linear(3, 2), {}, {}, batch)
