"""Pairs of transforms on random networks with batch norm and dropout, against loops over members.

A member has parameters, statistics and a key of its own; all see one batch.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.func import grad, jvp, vmap

import funcnets
from funcnets import layers, losses, random, tree
from funcnets.core import Layer
from funcnets.testing import assert_close, random_like, random_values, strategies
from funcnets.transforms import curvature, ensemble

MEMBERS = 2
Member = tuple[Any, Any, Tensor]  # params, state, key


def loss_over(net: Layer, x: Tensor, labels: Tensor) -> Any:
    """`loss(params, state, key)` in training, on this batch."""

    def loss(params: Any, state: Any, key: Tensor) -> Tensor:
        return losses.cross_entropy(net.apply(params, state, x, train=True, key=key)[0], labels)

    return loss


def one_by_one(function: Any, members: list[Member]) -> Any:
    return tree.transpose([function(*member) for member in members])


def vmap_of_grad(loss: Any, members: list[Member]) -> tuple[Any, Any]:
    return vmap(grad(loss))(*ensemble.stack(members)), one_by_one(grad(loss), members)


def grad_of_vmap(loss: Any, members: list[Member]) -> tuple[Any, Any]:
    def total(params: Any, *rest: Any) -> Tensor:
        return vmap(loss)(params, *rest).sum()

    return grad(total)(*ensemble.stack(members)), one_by_one(grad(loss), members)


def jvp_of_grad(loss: Any, members: list[Member]) -> tuple[Any, Any]:
    params, *rest = members[0]
    vector = random_like(params, 0)

    def along(params: Any) -> Tensor:
        return curvature.dot(grad(loss)(params, *rest), vector)

    forward = jvp(lambda params: grad(loss)(params, *rest), (params,), (vector,))[1]
    return forward, grad(along)(params)


def jit_of_vmap_of_grad(loss: Any, members: list[Member]) -> tuple[Any, Any]:
    jitted = funcnets.jit(vmap(grad(loss)), backend="graph")
    return jitted(*ensemble.stack(members)), one_by_one(grad(loss), members)


PAIRS = [vmap_of_grad, grad_of_vmap, jvp_of_grad, jit_of_vmap_of_grad]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.__name__)
@given(drawn=strategies.layers(classes=3), seed=strategies.seeds)
@settings(max_examples=5)
def test_a_pair_is_its_slow_definition(pair: Any, drawn: Any, seed: int) -> None:
    rest, shape = drawn.layer(), drawn.shape
    # What is drawn may be without them.
    net = funcnets.sequential(bn=layers.batch_norm(eps=1e-3), drop=layers.dropout(0.25), rest=rest)
    x = random.normal(random.key(seed), shape, torch.float64)
    loss = loss_over(net, x, torch.arange(len(x)) % 3)
    members = [(*random_values(net, x, seed + i), random.key(seed + i)) for i in range(MEMBERS)]
    actual, expected = pair(loss, members)
    assert_close(tree.flatten_named(actual), tree.flatten_named(expected))
