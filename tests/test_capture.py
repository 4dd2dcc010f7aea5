"""`capture`: activations and their gradients by path, against the parts run one by one."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.func import grad, jvp, vmap

import funcnets
from funcnets import models, random, tree
from funcnets.core import LayerError, residual, sequential
from funcnets.layers import batch_norm, conv2d, dropout, flatten, linear, relu, tanh
from funcnets.testing import Architecture, assert_close, random_like, random_values, strategies
from funcnets.transforms import capture, remat
from funcnets.transforms.paths import match_parts, part_paths

KEY = random.key(5)
X = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BODY = sequential(conv=conv2d(3, 3), bn=batch_norm(), act=tanh(), drop=dropout(0.3))
HEAD = sequential(flat=flatten(), fc=linear(4))
NET = sequential(body=BODY, head=HEAD)
PARAMS, STATE = random_values(NET, X, 1)
capture_net = partial(capture, NET, PARAMS, STATE, train=True, key=KEY)


def run_head(hidden: Tensor) -> Tensor:
    return HEAD.apply(PARAMS["head"], {}, hidden)[0]


def run_body(x: Tensor) -> Tensor:
    key = random.fold_in(KEY, 0)
    return BODY.apply(PARAMS["body"], STATE["body"], x, train=True, key=key)[0]


@given(drawn=strategies.layers(), seed=strategies.seeds)
@settings(max_examples=25)
def test_output_and_state_are_those_of_apply(drawn: Architecture, seed: int) -> None:
    parts, shape = drawn
    net = drawn.layer()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    params, state = random_values(net, x, seed)
    y, new_state = net.apply(params, state, x, train=True, key=KEY)
    captured = capture(net, params, state, x, paths=["*"], train=True, key=KEY)
    assert torch.equal(captured.output, y)
    assert tree.map(torch.equal, captured.state, new_state) == tree.map(
        lambda leaf: True, new_state
    )
    assert list(captured.activations) == part_paths(net)
    assert torch.equal(captured.activations[f"part{len(parts) - 1}"], y)


def test_activations_are_what_the_parts_give() -> None:
    captured = capture_net(X, paths=["body", "head.flat"])
    hidden = run_body(X)
    expected = {"body": hidden, "head.flat": hidden.flatten(1)}
    assert_close(captured.activations, expected)
    assert_close({"output": captured.output}, {"output": run_head(hidden)})


def test_parts_that_run_inside_unnamed_ones_and_without_leaves() -> None:
    net = sequential(residual(sequential(a=relu(), b=tanh())), c=relu())
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    captured = capture(net, {}, {}, x, paths=["a", "b"])
    assert_close(captured.activations, {"a": x.relu(), "b": x.relu().tanh()})
    assert captured.state == {}


def test_a_shift_is_added_where_it_belongs() -> None:
    shift = random_like(run_body(X), 2)
    captured = capture_net(X, paths=["body"], shifts={"body": shift})
    expected = run_body(X) + shift
    assert_close(captured.activations, {"body": expected})
    assert_close({"output": captured.output}, {"output": run_head(expected)})


@pytest.mark.parametrize("net", [NET, remat(NET), sequential(body=remat(BODY), head=HEAD)])
@pytest.mark.parametrize("backend", [None, "graph"])
def test_the_gradient_of_an_activation_is_that_of_its_shift(net: Any, backend: Any) -> None:
    def gradient(params: Any, x: Tensor) -> Tensor:
        def score(shifts: Any) -> Tensor:
            captured = capture(
                net, params, STATE, x, paths=shifts, shifts=shifts, train=True, key=KEY
            )
            return captured.output.sin().sum()

        (activation,) = capture(
            net, params, STATE, x, paths=["body.bn"], train=True, key=KEY
        ).activations.values()
        return grad(score)({"body.bn": torch.zeros_like(activation)})["body.bn"]

    def after_norm(value: Tensor) -> Tensor:
        keep = random.bernoulli(random.fold_in(random.fold_in(KEY, 0), 3), 0.7, value.shape)
        return run_head(value.tanh() * keep / 0.7).sin().sum()

    normed = capture_net(X, paths=["body.bn"]).activations["body.bn"]
    run = funcnets.jit(gradient, backend=backend) if backend else gradient
    assert_close({"bn": run(PARAMS, X)}, {"bn": grad(after_norm)(normed)})


@pytest.mark.parametrize("net", [NET, sequential(body=remat(BODY), head=HEAD)])
def test_activations_differentiate_as_functions_of_the_input(net: Any) -> None:
    def activation(x: Tensor) -> Tensor:
        captured = capture(net, PARAMS, STATE, x, paths=["body"], train=True, key=KEY)
        return captured.activations["body"]

    cotangent, tangent = random_like(run_body(X), 3), random_like(X, 4)
    actual = {
        "grad": grad(lambda x: (activation(x) * cotangent).sum())(X),
        "jvp": jvp(activation, (X,), (tangent,))[1],
        "vmap": vmap(activation)(torch.stack([X, tangent])),
    }
    expected = {
        "grad": grad(lambda x: (run_body(x) * cotangent).sum())(X),
        "jvp": jvp(run_body, (X,), (tangent,))[1],
        "vmap": torch.stack([run_body(X), run_body(tangent)]),
    }
    assert_close(actual, expected)


def test_gradients_of_each_example_by_vmap_are_those_of_the_batch() -> None:
    def gradient(x: Tensor) -> Tensor:
        def score(shift: Tensor) -> Tensor:
            captured = capture(NET, PARAMS, STATE, x, paths=[], shifts={"body.conv": shift})
            return captured.output.sin().sum()

        like = capture(NET, PARAMS, STATE, x, paths=["body.conv"]).activations["body.conv"]
        return grad(score)(torch.zeros_like(like))

    each = vmap(lambda x: gradient(x[None])[0])(X)
    assert_close({"conv": each}, {"conv": gradient(X)})


def test_patterns_match_in_the_order_of_the_network() -> None:
    net = models.resnet18()
    stages = [f"stage{i}.block{j}" for i in (1, 2, 3, 4) for j in (1, 2)]
    assert match_parts(net, ["stage*.block?"])[:1] == ["stage1.block1"]
    assert set(stages) <= set(match_parts(net, ["stage*.block?"]))
    assert match_parts(net, ["fc", "stem"]) == ["stem", "fc"]
    assert match_parts(net, ["*.shortcut"]) == [f"stage{i}.block1.shortcut" for i in (2, 3, 4)]


@pytest.mark.parametrize("asked", [{"paths": ["body.cnv"]}, {"shifts": {"body.cnv": X}}])
def test_a_path_that_is_not_there_is_an_error_that_names_the_nearest(asked: Any) -> None:
    with pytest.raises(ValueError, match=r"`body\.cnv` matches no part; near it: body\.conv"):
        capture_net(X, **{"paths": [], **asked})


def test_a_string_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match=r"paths is the string 'body'; .*paths=\['body'\]"):
        capture_net(X, paths="body")


def test_a_shift_of_another_shape_is_an_error_that_names_the_part() -> None:
    with pytest.raises(LayerError, match=r"body\.bn: .*shape \(3,\), expected \(4, 3, 3, 3\)"):
        capture_net(X, paths=[], shifts={"body.bn": torch.ones(3)})
