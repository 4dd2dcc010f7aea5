"""Random values for layers and modules, off their initial ones, where 0 and 1 hide mistakes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from funcnets import random, tree
from funcnets.core import Layer, Params, State


def generator(seed: int) -> torch.Generator:
    """Return a generator of PyTorch with this seed."""
    return torch.Generator().manual_seed(seed)


def random_like(values: Any, seed: int) -> Any:
    """Return a tree of normal numbers, of the shapes and dtypes of `values`."""
    source = generator(seed)
    return tree.map(lambda leaf: torch.randn(leaf.shape, generator=source).to(leaf), values)


def random_values(layer: Layer, x: Tensor, seed: int = 0) -> tuple[Params, State]:
    """Return parameters near their initial values, and random statistics, for inputs like `x`.

    Floating statistics are in (1/e, e), as a variance has to be positive; others are as `init`
    gives them.
    """
    params, state = layer.init(random.key(seed), x)
    params = tree.map(lambda leaf, noise: leaf + noise / 8, params, random_like(params, seed))
    return params, random_statistics(state, seed + 1)


def random_statistics(state: Any, seed: int) -> Any:
    """Return random numbers in (1/e, e) in place of each floating leaf."""

    def statistic(leaf: Tensor, noise: Tensor) -> Tensor:
        return noise.tanh().exp() if leaf.is_floating_point() else leaf

    return tree.map(statistic, state, random_like(state, seed))


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Write random parameters and statistics into a module.

    Weights of convolutions and linear layers keep the size of what passes through them; those of
    batch norms are around 1.
    """

    def sized(name: str, leaf: Tensor, noise: Tensor) -> Tensor:
        if leaf.ndim > 1:
            scaled: Tensor = noise * (2 / leaf[0].numel()) ** 0.5
            return scaled
        return noise / 4 + name.endswith("weight")

    _write(dict(module.named_parameters()), sized, seed)
    statistics = {name: leaf for name, leaf in module.named_buffers() if leaf.is_floating_point()}
    _write(statistics, lambda name, leaf, noise: noise.tanh().exp(), seed + 1)


def _write(
    named: dict[str, Tensor], value: Callable[[str, Tensor, Tensor], Tensor], seed: int
) -> None:
    for (name, leaf), noise in zip(
        named.items(), random_like([*named.values()], seed), strict=True
    ):
        leaf.copy_(value(name, leaf, noise))
