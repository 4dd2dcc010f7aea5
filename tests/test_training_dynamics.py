"""Trainings of some hundred steps, and the initial values they begin with, are the modules'.

One gradient may be right where a training isn't; one training can't show how values are drawn.
"""

from functools import partial
from statistics import fmean
from typing import Any

import pytest
import torch
from registry import NETWORKS
from torch import Tensor, nn

import funcnets
from funcnets import data, models, optim, random, tree
from funcnets.testing import Network, assert_trains_alike

STEPS = 200
IMAGES = 70  # in batches of 16, the last of 6: forty epochs
SEEDS = 24
DEVIATIONS = 5


def as_the_recipe_says(network: Network, seed: int) -> nn.Module:
    """The twin, with PyTorch's own draws of its initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network.module()
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(part.weight)
    return module


def batches(dataset: data.Dataset, side: int) -> list[tuple[Tensor, Tensor]]:
    images = data.prepare(dataset.train_images[:IMAGES], side, torch.float64)
    orders = (data.batches(data.shuffle(random.key(0), epoch, IMAGES), 16) for epoch in range(40))
    return [(images[rows], dataset.train_labels[rows]) for order in orders for rows in order]


each_network = pytest.mark.parametrize(
    "name",
    [
        "lenet_bn",
        *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name != "lenet_bn"),
    ],
)


@each_network
def test_some_hundred_steps_are_those_of_the_module(name: str, bundled: data.Dataset) -> None:
    network, rate = NETWORKS[name], models.get(name, "reference")[1].learning_rate
    losses: list[float] = []

    def noted(step: Any) -> Any:
        compiled = funcnets.jit(step, backend="graph")

        def stepped(*arguments: Any) -> Any:
            train_state, measured = compiled(*arguments)
            losses.append(float(measured["loss"]))
            return train_state, measured

        return stepped

    assert_trains_alike(
        network.layer(),
        as_the_recipe_says(network, 1),
        (16, *network.shape[1:]),
        optimizers=(optim.sgd(rate), partial(torch.optim.SGD, lr=rate)),
        batches=batches(bundled, network.shape[2]),
        transform=noted,
        tolerance=1e-6,
        values="module",
    )
    assert len(losses) == STEPS
    assert fmean(losses[-20:]) < fmean(losses[:20])


def drawn(network: Network, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Initial values of the layer and of the module, by their names."""
    example = torch.empty(network.shape, dtype=torch.float64, device="meta")
    params, state = network.layer().init(random.key(seed), example)
    module = as_the_recipe_says(network, seed)
    theirs = {name: leaf for name, leaf in module.state_dict().items() if leaf.ndim}
    return tree.flatten_named(params) | tree.flatten_named(state), theirs


@each_network
def test_initial_values_are_spread_as_pytorchs_own(name: str) -> None:
    pairs = [drawn(NETWORKS[name], seed) for seed in range(SEEDS)]
    assert {*pairs[0][0]} == {*pairs[0][1]}
    for leaf in pairs[0][0]:
        ours, theirs = (
            torch.stack([side[leaf].detach().double().flatten() for side in sides])
            for sides in zip(*pairs, strict=True)
        )
        assert ours.shape == theirs.shape, leaf
        if (theirs == theirs[0, 0]).all():
            assert torch.equal(ours, theirs), leaf  # of batch norms
            continue
        assert len(ours.unique()) == ours.numel(), f"{leaf}: a draw is repeated"
        count, bound = ours.numel(), float(theirs.abs().max())
        # Standard deviations of differences of two means, and of two variances, of uniform numbers.
        deviation, square = bound / 3**0.5, bound**2 / 3
        assert abs(ours.mean() - theirs.mean()) < DEVIATIONS * deviation * (2 / count) ** 0.5, leaf
        allowed = DEVIATIONS * square * (1.6 / count) ** 0.5
        assert abs(ours.var() - theirs.var()) < allowed, leaf
        assert abs(float(ours.abs().max()) / bound - 1) < 12 / count, leaf
