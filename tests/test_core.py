"""How layers combine: names, order, keys, state, shapes, and where an error happened."""

from typing import Any

import pytest
import torch
from torch import Tensor

from funcnets import core, random, tree
from funcnets.core import Layer, LayerError, concat, dense, residual, sequential
from funcnets.layers import batch_norm, conv2d, dropout, flatten, linear, relu
from funcnets.testing import random_like

KEY = random.key(3)
X = random_like(torch.zeros(2, 3, 4, 4, dtype=torch.float64), 0)


def probe(name: str, log: list[tuple[str, Any]], *, stochastic: bool = False) -> Layer:
    """A layer that adds its parameter, counts its calls in its state, and tells its key."""

    def init(key: Tensor, x: Tensor) -> tuple[Any, Any]:
        log.append((name, key))
        return {"offset": random.normal(key, (), x.dtype)}, {"calls": torch.zeros(())}

    def apply(params: Any, state: Any, x: Tensor, *, train: bool = False, key: Any = None) -> Any:
        log.append((name, key))
        return x + params["offset"], {"calls": state["calls"] + train}

    return Layer(name, init, apply, stochastic=stochastic)


def keys_of(log: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: None if key is None else key.tolist() for name, key in log}


def folded(*path: int) -> list[int]:
    key = KEY
    for index in path:
        key = random.fold_in(key, index)
    return key.tolist()


def double(name: str = "double") -> Layer:
    """A layer without parameters that multiplies by 2."""
    apply = lambda params, state, x, *, train=False, key=None: (2 * x, {})  # noqa: E731
    return Layer(name, lambda key, x: ({}, {}), apply)


def applied(layer: Layer, x: Tensor = X) -> Tensor:
    params, state = layer.init(KEY, x)
    return layer.apply(params, state, x, train=True, key=KEY)[0]


def test_each_part_gets_a_key_of_its_own_in_init() -> None:
    log: list[tuple[str, Any]] = []
    net = sequential(probe("a", log), b=sequential(c=probe("c", log), d=probe("d", log)))
    params, _ = net.init(KEY, X)
    init_keys = keys_of(log[:1] + [entry for entry in log[1:] if entry[1] is not None])
    assert init_keys == {"a": folded(0), "c": folded(1, 0), "d": folded(1, 1)}
    assert len({float(leaf) for leaf in tree.leaves(params)}) == 3


def test_only_stochastic_parts_in_training_get_keys_in_apply() -> None:
    log: list[tuple[str, Any]] = []
    net = sequential(
        a=probe("a", log),
        b=probe("b", log, stochastic=True),
        c=sequential(d=probe("d", log, stochastic=True), e=probe("e", log)),
    )
    assert net.stochastic
    params, state = net.init(KEY, X)
    log.clear()
    net.apply(params, state, X, train=True, key=KEY)
    assert keys_of(log) == {"a": None, "b": folded(1), "d": folded(2, 0), "e": None}
    log.clear()
    net.apply(params, state, X, key=KEY)
    assert keys_of(log) == dict.fromkeys("abde")


def test_state_is_threaded_to_the_part_that_it_belongs_to() -> None:
    log: list[tuple[str, Any]] = []
    net = sequential(a=probe("a", log), b=concat(c=probe("c", log), d=relu()))
    params, state = net.init(KEY, X)
    state["b"]["c"]["calls"] += 5
    _, after = net.apply(params, state, X, train=True)
    assert after == {"a": {"calls": 1}, "b": {"c": {"calls": 6}}}
    assert state == {"a": {"calls": 0}, "b": {"c": {"calls": 5}}}


def test_parts_without_leaves_have_no_entry() -> None:
    net = sequential(relu(), conv=conv2d(2, 1), act=relu(), inner=sequential(flat=flatten()))
    params, state = net.init(KEY, X)
    assert tree.names(params) == ["conv.bias", "conv.weight"]
    assert params.keys() == {"conv"}
    assert state == {}


def test_unnamed_parts_have_no_level() -> None:
    net = sequential(sequential(conv=conv2d(2, 1)), sequential(sequential(bn=batch_norm())))
    params, state = net.init(KEY, X)
    assert tree.names(params) == ["bn.bias", "bn.weight", "conv.bias", "conv.weight"]
    assert tree.names(state) == ["bn.running_mean", "bn.running_var"]
    assert list(net.children) == ["conv", "bn"]


@pytest.mark.parametrize(
    "net",
    [
        sequential(conv2d(3, 1), conv2d(3, 1)),
        concat(sequential(a=relu()), sequential(a=conv2d(1, 1)), sequential(a=conv2d(1, 1))),
        sequential(residual(conv2d(3, 1)), batch_norm()),
    ],
)
def test_leaves_that_would_collide(net: Layer) -> None:
    with pytest.raises(LayerError, match=r"leaf or part `(weight|a)`: name them"):
        net.init(KEY, X)


def test_sequential_runs_in_the_order_given() -> None:
    add_one = probe("one", [])
    params, state = {"one": {"offset": torch.ones(())}}, {"one": {"calls": torch.zeros(())}}
    after, _ = sequential(double(), one=add_one).apply(params, state, X)
    before, _ = sequential(one=add_one, last=double()).apply(params, state, X)
    assert torch.equal(after, 2 * X + 1)
    assert torch.equal(before, 2 * (X + 1))
    assert torch.equal(applied(sequential()), X)


def test_residual_adds() -> None:
    assert torch.equal(applied(residual(double())), 2 * X + X)
    assert torch.equal(applied(residual(double(), sequential(double(), double()))), 2 * X + 4 * X)


def test_concat_joins_channels() -> None:
    assert torch.equal(
        applied(concat(double(), sequential(), a=double())), torch.cat([2 * X, X, 2 * X], 1)
    )


def test_dense_joins_each_output_to_its_input() -> None:
    once = torch.cat([X, 2 * X], 1)
    assert torch.equal(applied(dense(a=double(), b=double())), torch.cat([once, 2 * once], 1))


@pytest.mark.parametrize("by", ["layer", "forward"])
def test_what_takes_no_empty_batch_is_initialised_too(by: str) -> None:
    """A layer or a forward pass that fails on an empty batch, as `view(len(x), -1)` does."""

    def flat(x: Tensor) -> Tensor:
        return x.view(len(x), -1) / (len(x) // len(x))

    rows = Layer("rows", lambda key, x: ({}, {}), lambda params, state, x, **_: (flat(x), {}))
    net = sequential(rows, fc=linear(2))
    if by == "forward":
        net = core.combine("rows", [("fc", linear(2))], lambda run, x: run(0, flat(x)))
    net = sequential(conv=conv2d(5, 1), head=net)
    params, state = net.init(KEY, X)
    assert params["head"]["fc"]["weight"].shape == (2, 5 * 4 * 4)
    assert net.apply(params, state, X)[0].shape == (2, 2)
    other, _ = sequential(conv=conv2d(5, 1)).init(KEY, X)
    assert torch.equal(params["conv"]["weight"], other["conv"]["weight"])


def test_residual_of_unlike_shapes() -> None:
    net = sequential(stage=residual(conv2d(5, 1)))
    message = r"^stage: residual: .*\(N, 5, 4, 4\).*\(N, 3, 4, 4\): give a shortcut"
    with pytest.raises(LayerError, match=message):
        net.init(KEY, X)


def test_errors_name_the_path_from_init_and_from_apply() -> None:
    net = sequential(
        stem=conv2d(3, 1), stage=residual(sequential(block=sequential(relu(), fc=linear(2))))
    )
    with pytest.raises(LayerError, match=r"^stage\.block\.fc: linear\(2\): got .*\(N, C\)"):
        net.init(KEY, X)
    params, _ = sequential(stem=conv2d(3, 1)).init(KEY, X)
    with pytest.raises(LayerError) as caught:
        net.apply(params, {}, X)
    assert caught.value.path == ("stage", "block", "fc")
    assert isinstance(caught.value, ValueError)


def test_the_path_of_a_shortcut() -> None:
    net = sequential(block=residual(conv2d(3, 1), linear(3)))
    with pytest.raises(LayerError, match=r"^block\.shortcut: linear"):
        net.init(KEY, X)


def test_parts_must_be_layers() -> None:
    with pytest.raises(TypeError, match=r"^act: .*call its constructor"):
        sequential(act=relu)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a part: got"):
        concat(torch.relu)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^a\.b: .*no dot"):
        sequential(**{"a.b": relu()})


def test_output_computes_nothing() -> None:
    net = sequential(conv=conv2d(7, 3, padding=1), bn=batch_norm(), drop=dropout())
    params, state = net.init(KEY, X)
    result = core.eval_shape(net, params, state, X)
    assert result.is_meta
    assert result.shape == (2, 7, 4, 4)


def test_a_layer_shows_what_it_is() -> None:
    assert repr(sequential(conv=conv2d(7, 3, padding=1), act=relu())) == "<sequential: conv, act>"
    assert repr(conv2d(7, 3, padding=1)) == "<conv2d(7, 3, padding=1)>"
    with pytest.raises(AttributeError):
        relu().kind = "other"  # type: ignore[misc]


def test_a_network_of_one_layer_type_composes() -> None:
    """Combinators take each other's results: depth makes no difference."""
    net = sequential(a=dense(b=concat(c=residual(double()), d=residual(residual(double())))))
    assert torch.equal(applied(net), torch.cat([X, 3 * X, 4 * X], 1))


def shifted(inner: core.Apply) -> core.Apply:
    return lambda *args, **options: (inner(*args, **options)[0] + 1, {})


def test_rewriting_visits_every_layer_by_its_name_and_keeps_the_rest() -> None:
    net = sequential(
        relu(), a=conv2d(2, 1), b=residual(sequential(c=dropout()), sequential(conv2d(2, 1)))
    )
    seen: list[str | None] = []

    def note(name: str | None, layer: Layer) -> Layer:
        seen.append(name)
        return layer

    same = core.rewrite(net, note)
    assert seen == [None, "a", "b.c", None, None, "b.shortcut", "b", ""]
    params, state = net.init(KEY, X)
    for layer in (net, same):
        assert torch.equal(applied(layer), net.apply(params, state, X, train=True, key=KEY)[0])


def test_what_is_wrapped_stays_so_when_its_parts_are_rewritten() -> None:
    net = sequential(a=core.wrap(sequential(b=double()), shifted), c=double())
    assert torch.equal(applied(net), 2 * (2 * X + 1))
    wrapped = core.rewrite(net, lambda name, x: core.wrap(x, shifted) if name == "a.b" else x)
    assert torch.equal(applied(wrapped), 2 * (2 * X + 2))
