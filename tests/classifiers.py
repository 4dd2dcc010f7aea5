"""A small network with batch norm and dropout, batches for networks, and slow gradients of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import funcnets
from funcnets import layers, losses, random, train, tree
from funcnets.core import Layer
from funcnets.testing import random_values

NET = funcnets.sequential(
    conv1=layers.conv2d(3, 3),
    bn1=layers.batch_norm(),
    dropout1=layers.dropout(0.25),
    block=funcnets.residual(
        funcnets.sequential(conv=layers.conv2d(2, 1), bn=layers.batch_norm(0.5, unbiased=False)),
        layers.conv2d(2, 1),
    ),
    tanh=layers.tanh(),
    flatten=layers.flatten(),
    fc1=layers.linear(4),
    bn2=layers.batch_norm(),
    dropout2=layers.dropout(0.5),
    fc2=layers.linear(3),
)


class Problem(NamedTuple):
    """A network with parameters, statistics, a batch and a key."""

    net: Layer
    params: Any
    state: Any
    batch: tuple[Tensor, Tensor]
    key: Tensor


def problem(net: Layer = NET, shape: tuple[int, ...] = (5, 1, 5, 4), seed: int = 0) -> Problem:
    x = random.normal(random.key(seed), shape, torch.float64)
    labels = torch.arange(len(x)) % 3
    return Problem(net, *random_values(net, x, seed), (x, labels), random.key(seed + 1))


def whole(problem: Problem, params: Any = None) -> dict[str, Tensor]:
    """Gradients, statistics and measurements of the batch in one piece."""
    return gradients(train.batch_gradient, problem, params)


def gradients(gradient: Any, problem: Problem, params: Any = None) -> dict[str, Tensor]:
    net, own, state, batch, key = problem
    params = own if params is None else params
    grads, after, measured = gradient(net, losses.cross_entropy, params, state, batch, key=key)
    return tree.flatten_named({"grads": grads, "state": after, **measured})


def one_by_one(problem: Problem, params: Any = None) -> Any:
    """The gradient of each example's loss in the whole batch, by a loop; and the losses."""
    net, own, state, (x, labels), key = problem

    def loss_of(params: Any, i: int) -> Tensor:
        logits, _ = net.apply(params, state, x, train=True, key=key)
        return losses.cross_entropy(logits[i : i + 1], labels[i : i + 1])

    params = own if params is None else params
    each = [torch.func.grad_and_value(loss_of)(params, i) for i in range(len(labels))]
    return tree.transpose(each)
