"""Derivatives and vmap at the top level: JAX's order of results, of trees."""

import pytest
import torch

import funcnets
from funcnets import tree
from funcnets.testing import assert_close

PARAMS = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}


def loss(params, x):
    return ((params["w"] * x).sum() + params["b"]) ** 2


def with_aux(params, x):
    return loss(params, x), {"x": x + 1}


X = torch.tensor([0.5, -1.0])
VALUE = torch.tensor(2.25)
GRADS = {"w": torch.tensor([1.5, -3.0]), "b": torch.tensor(3.0)}


def test_gradients_come_alone_or_with_what_the_function_gives_besides():
    assert_close(funcnets.grad(loss)(PARAMS, X), GRADS)
    gradients, aux = funcnets.grad(with_aux, has_aux=True)(PARAMS, X)
    assert_close((gradients, aux), (GRADS, {"x": X + 1}))
    both = funcnets.grad(loss, argnums=(0, 1))(PARAMS, X)
    assert_close(both, (GRADS, 3.0 * PARAMS["w"]))


def test_the_value_comes_before_the_gradients():
    value, gradients = funcnets.value_and_grad(loss)(PARAMS, X)
    assert_close((value, gradients), (VALUE, GRADS))
    (value, aux), gradients = funcnets.value_and_grad(with_aux, has_aux=True)(PARAMS, X)
    assert_close((value, aux, gradients), (VALUE, {"x": X + 1}, GRADS))


def test_vmap_maps_the_axes_that_are_named():
    xs = torch.stack([X, 2 * X], 1)
    mapped = funcnets.vmap(funcnets.value_and_grad(loss), in_axes=(None, 1))(PARAMS, xs)
    looped = [funcnets.value_and_grad(loss)(PARAMS, x) for x in xs.T]
    assert_close(mapped, tree.map(lambda *each: torch.stack(each), *looped))
    halved = funcnets.vmap(lambda x: x / 2, in_axes=1, out_axes=1, chunk_size=1)(xs)
    assert_close(halved, xs / 2)
    with pytest.raises(RuntimeError, match="random"):
        funcnets.vmap(lambda x: x + torch.rand(2))(xs)


def test_forward_and_reverse_mode_give_outputs_first():
    direction = tree.map(torch.ones_like, PARAMS)
    output, tangent = funcnets.jvp(loss, (PARAMS, X), (direction, torch.zeros(2)))
    assert_close((output, tangent), (VALUE, torch.tensor(1.5)))
    assert len(funcnets.jvp(with_aux, (PARAMS, X), (direction, X), has_aux=True)) == 3
    output, pull_back = funcnets.vjp(loss, PARAMS, X)
    assert_close((output, pull_back(torch.tensor(1.0))), (VALUE, (GRADS, 3.0 * PARAMS["w"])))
    output, pull_back, aux = funcnets.vjp(lambda p: with_aux(p, X), PARAMS, has_aux=True)
    assert_close(
        (pull_back(torch.tensor(2.0)), aux), ((tree.map(lambda g: 2 * g, GRADS),), {"x": X + 1})
    )


def test_second_derivatives_are_trees_of_trees():
    second = funcnets.hessian(loss)(PARAMS, X)
    assert_close(second["w"]["w"], 2 * torch.outer(X, X))
    assert_close(second["b"], {"w": 2 * X, "b": torch.tensor(2.0)})


def test_they_are_compiled_inside_jit():
    step = funcnets.jit(funcnets.value_and_grad(with_aux, has_aux=True), backend="graph")
    assert_close(step(PARAMS, X), ((VALUE, {"x": X + 1}), GRADS))
