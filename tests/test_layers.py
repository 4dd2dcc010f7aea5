"""What holds for every layer, block and network, checked over the registry."""

import re
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from comparison import assert_close, generator, init, random_like
from registry import ENTRIES, NETWORKS, Entry
from torch import Tensor

import funcnets
from funcnets import core, interop, layers, random, transforms, tree
from funcnets.core import LayerError, sequential

KEY = random.key(7)


@pytest.fixture(params=ENTRIES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def entry(name: str) -> Entry:
    return ENTRIES[name]


def example(entry: Entry, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(entry.shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@cache
def leaves(entry: Entry, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Any, Any]:
    return init(entry.layer, example(entry, dtype), seed)


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert tree.names(actual) == tree.names(expected)
    for leaf, other in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        assert torch.equal(leaf, other)


def nested(entry: Entry) -> core.Layer:
    return sequential(outer=sequential(inner=entry.layer))


def error_of(entry: Entry, x: Tensor, params: Any, state: Any, **options: Any) -> str:
    """The message of the LayerError that the layer raises, as `outer.inner` of a network."""
    with pytest.raises(LayerError) as caught:
        nested(entry).apply({"outer": {"inner": params}}, {"outer": {"inner": state}}, x, **options)
    assert str(caught.value).startswith("outer.inner")
    assert caught.value.path[:2] == ("outer", "inner")
    return str(caught.value)


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


@pytest.mark.parametrize("train", [True, False])
def test_declared_output_is_the_actual_one(entry: Entry, train: bool) -> None:
    x, (params, state) = example(entry), leaves(entry)
    declared = core.eval_shape(entry.layer, params, state, x)
    actual, _ = entry.layer.apply(params, state, x, train=train, key=KEY)
    assert (declared.shape, declared.dtype) == (actual.shape, actual.dtype)
    assert declared.is_meta


@pytest.mark.parametrize("train", [True, False])
def test_inputs_are_left_unchanged(entry: Entry, train: bool) -> None:
    given = (*leaves(entry), example(entry), KEY.clone())
    before = tree.map(torch.clone, given)
    params, state, x, key = given
    output, new_state = entry.layer.apply(params, state, x, train=train, key=key)
    # Writing to what comes back must not reach what was given either, but for an
    # evaluation's state and a layer that gives its input back.
    if train:
        for leaf in tree.leaves(new_state):
            leaf.zero_()
    assert output.shape[0] == x.shape[0]
    assert_same_bits(given, before)


def test_init_leaves_its_inputs_unchanged(entry: Entry) -> None:
    x, key = example(entry), KEY.clone()
    entry.layer.init(key, x)
    assert torch.equal(x, example(entry))
    assert torch.equal(key, KEY)


def test_state_is_equal_after_evaluation_and_other_after_training(entry: Entry) -> None:
    x, (params, state) = example(entry), leaves(entry)
    _, evaluated = entry.layer.apply(params, state, x)
    assert_same_bits(evaluated, state)
    _, trained = entry.layer.apply(params, state, x, train=True, key=KEY)
    assert tree.names(trained) == tree.names(state)
    for leaf, other in zip(tree.leaves(trained), tree.leaves(state), strict=True):
        assert leaf.shape == other.shape
        assert not torch.equal(leaf, other)


def test_same_key_same_numbers(entry: Entry) -> None:
    x, (params, state) = example(entry), leaves(entry)

    def output(key: Tensor) -> Tensor:
        return entry.layer.apply(params, state, x, train=True, key=key)[0]

    assert torch.equal(output(KEY), output(KEY.clone()))
    assert entry.layer.stochastic != torch.equal(output(KEY), output(random.key(8)))


def test_evaluation_needs_no_key_and_ignores_it(entry: Entry) -> None:
    x, (params, state) = example(entry), leaves(entry)
    without, _ = entry.layer.apply(params, state, x)
    assert torch.equal(without, entry.layer.apply(params, state, x, key=KEY)[0])


def test_same_key_same_initial_values(entry: Entry) -> None:
    x = example(entry)
    first, again, other = (entry.layer.init(random.key(seed), x)[0] for seed in (1, 1, 2))
    assert_same_bits(first, again)
    for name, leaf in tree.flatten_named(first).items():
        constant = leaf.unique().numel() == 1
        assert constant == torch.equal(leaf, tree.flatten_named(other)[name]), name


def gradients(entry: Entry, seed: int) -> dict[str, Tensor]:
    x, (params, state) = example(entry, seed=seed), leaves(entry, seed=seed)

    def loss(params: Any) -> Tensor:
        y, _ = entry.layer.apply(params, state, x, train=True, key=random.key(seed))
        return (y * random_like(y, seed)).sum()

    return tree.flatten_named(torch.func.grad(loss)(params))


def test_every_parameter_gets_a_gradient(entry: Entry) -> None:
    """In some of a few draws, as a narrow layer's units can all be dead or dropped in one."""
    without = set(tree.names(leaves(entry)[0]))
    shifted = {name for name in without if re.fullmatch(entry.shifted_away, name)}
    for seed in range(5):
        for name, gradient in gradients(entry, seed).items():
            assert gradient.isfinite().all(), name
            if gradient.abs().max() > 1e-9:
                without.discard(name)
        if without == shifted:
            break
    assert without == shifted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_parameters_and_outputs_take_the_input_dtype(
    entry: Entry, dtype: torch.dtype, train: bool
) -> None:
    x, (params, state) = example(entry, dtype), entry.layer.init(KEY, example(entry, dtype))
    output, new_state = entry.layer.apply(params, state, x, train=train, key=KEY)
    precise = torch.promote_types(dtype, torch.float32)
    assert {leaf.dtype for leaf in tree.leaves(params)} <= {dtype}
    assert {leaf.dtype for leaf in tree.leaves((state, new_state))} <= {precise}
    assert output.dtype == dtype
    assert output.isfinite().all()


def test_batch_of_one_in_evaluation(entry: Entry) -> None:
    x, (params, state) = example(entry), leaves(entry)
    whole, _ = entry.layer.apply(params, state, x)
    first, _ = entry.layer.apply(params, state, x[:1])
    assert_close({"first": first}, {"first": whole[:1]}, 1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_channels_last_in_and_out(entry: Entry, train: bool) -> None:
    if len(entry.shape) != 4:
        pytest.skip("rows have no memory format")
    x, (params, state) = example(entry), leaves(entry)
    last = x.contiguous(memory_format=torch.channels_last)
    expected, expected_state = entry.layer.apply(params, state, x, train=train, key=KEY)
    actual, actual_state = entry.layer.apply(params, state, last, train=train, key=KEY)
    assert_close({"output": actual}, {"output": expected}, 1e-12)
    assert_close(tree.flatten_named(actual_state), tree.flatten_named(expected_state), 1e-12)
    if actual.ndim == 4:
        assert actual.is_contiguous(memory_format=torch.channels_last)


def test_vmap_over_images_in_channels_last(entry: Entry) -> None:
    """Also: torch has a batching rule for all that a layer does; where it has none, it warns."""
    params, state = leaves(entry)
    x = torch.stack([example(entry, seed=seed) for seed in range(2)])
    if x.ndim == 5:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)

    def apply(x: Tensor) -> Any:
        return entry.layer.apply(params, state, x, train=True, key=KEY)

    mapped = torch.func.vmap(apply, randomness="same")(x)
    alone = tree.map(lambda *each: torch.stack(each), *map(apply, x))
    assert_close(tree.flatten_named(mapped), tree.flatten_named(alone))


def test_meta_input_gives_the_same_parameters(entry: Entry) -> None:
    x = example(entry)
    assert_same_bits(entry.layer.init(KEY, core.to_meta(x)), entry.layer.init(KEY, x))


def test_integer_images(entry: Entry) -> None:
    x = torch.zeros(entry.shape, dtype=torch.uint8)
    assert "torch.uint8" in error_of(entry, x, *leaves(entry))
    with pytest.raises(LayerError, match=r"^outer\.inner.*torch\.uint8"):
        nested(entry).init(KEY, x)


def test_arrays(entry: Entry) -> None:
    x = example(entry).numpy()
    message = "got ndarray input, expected a tensor"
    assert message in error_of(entry, x, *leaves(entry))
    with pytest.raises(LayerError, match=message):
        nested(entry).init(KEY, x)


def test_wrong_rank(entry: Entry) -> None:
    if entry.any_rank:
        pytest.skip("takes every rank")
    x = example(entry)
    assert str(tuple(x[0].shape)) in error_of(entry, x[0], *leaves(entry))
    with pytest.raises(LayerError, match=r"^outer\.inner.*\(N, C"):
        nested(entry).init(KEY, x[0])


def test_input_of_another_dtype_than_the_weights(entry: Entry) -> None:
    params, state = leaves(entry, torch.float32)
    if not params:
        pytest.skip("has no parameters")
    message = error_of(entry, example(entry), params, state, train=True, key=KEY)
    assert "torch.float64" in message
    assert "torch.float32" in message


def test_wrong_channel_count(entry: Entry) -> None:
    params, state = leaves(entry)
    if not params:
        pytest.skip("has no parameters")
    x = torch.cat([example(entry)] * 3, dim=1)
    assert str(entry.shape[1] * 3) in error_of(entry, x, params, state, train=True, key=KEY)


def test_missing_key(entry: Entry) -> None:
    if not entry.layer.stochastic:
        pytest.skip("needs no key")
    assert "key" in error_of(entry, example(entry), *leaves(entry), train=True)


def test_no_parameters(entry: Entry) -> None:
    if not leaves(entry)[0]:
        pytest.skip("has no parameters")
    assert "another network's" in error_of(entry, example(entry), {}, {}, train=True, key=KEY)


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
    message = error_of(
        ENTRIES[network], example(ENTRIES[network]), *leaves(ENTRIES[other]), key=KEY
    )
    assert re.match(r"outer\.inner\.\w+", message)


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
    entry = Entry(layer, tuple(x.shape))
    params, state = layer.init(KEY, x)
    assert message in error_of(entry, x, params, state)


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
    x = example(ENTRIES["dropout_images"])
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
