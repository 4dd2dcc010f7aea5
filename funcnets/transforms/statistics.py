"""Where the statistics of batch norms come from, and the noise of dropout, as one may choose.

Each function gives the same network, with the same parameters and keys, and changes its batch
norms or its random layers alone.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from funcnets import layers
from funcnets.core import Apply, Layer, LayerError, Params, State, rewrite, wrap

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel, (C,) each."""

Statistics = dict[int, Moments]
"""The moments of each batch norm, by its number in the network."""


class Unknown(Exception):
    """A batch norm was reached whose statistics aren't among those given."""


Training = Callable[[int, Layer, Params, State, Tensor], tuple[Tensor, State]]


def _batch_norms(net: Layer, training: Training) -> Layer:
    """The network whose i-th batch norm gives `training(i, layer, params, state, x)` in training.

    `layer` is that batch norm as it is.
    """
    numbers = itertools.count()

    def replaced(name: str | None, layer: Layer) -> Layer:
        if layer.track is None:
            return layer
        number = next(numbers)

        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            if not train:
                return layer.apply(params, state, x)
            return training(number, layer, params, state, x)

        return wrap(layer, lambda inner: apply)

    return rewrite(net, replaced)


def count_batch_norms(net: Layer) -> int:
    """How many batch norms the network has."""
    return (net.track is not None) + sum(count_batch_norms(part) for _, part in net.parts)


def _check_not_recomputed(layer: Layer, path: tuple[str, ...]) -> None:
    if layer.parts and layer.recomputed and count_batch_norms(layer):
        raise LayerError(
            "remat: a batch norm inside can't share the statistics of the whole batch: recompute "
            "parts without batch norm, or the batch norm by itself, or choose other `statistics`",
            path,
        )
    for name, part in layer.parts:
        _check_not_recomputed(part, path if name is None else (*path, name))


def frozen_statistics(net: Layer) -> Layer:
    """The same network, whose batch norms use running statistics in training, and leave them so.

    All else trains: dropout draws its masks.  An example's output then depends on it alone.
    """
    return _batch_norms(net, lambda number, layer, params, state, x: layer.apply(params, state, x))


def measured(net: Layer, into: Statistics) -> Layer:
    """The same network, whose batch norms in training note the moments of their input in `into`.

    Raises LayerError for a batch norm inside a layer under `remat`, which noted values can't leave
    with their derivatives.
    """
    _check_not_recomputed(net, ())

    def training(
        number: int, layer: Layer, params: Params, state: State, x: Tensor
    ) -> tuple[Tensor, State]:
        into[number] = layers.moments(x)
        return layer.apply(params, state, x, train=True)

    return _batch_norms(net, training)


def normalized_by(net: Layer, statistics: Statistics, count: int) -> Layer:
    """The same network, whose batch norms take `statistics` for those of a batch of `count`.

    In training, that is; their running statistics become what they would be after that batch.
    Running it raises Unknown at the first batch norm whose statistics aren't given.
    """

    def training(
        number: int, layer: Layer, params: Params, state: State, x: Tensor
    ) -> tuple[Tensor, State]:
        if number not in statistics or layer.track is None:
            raise Unknown
        mean, variance = statistics[number]
        y, _ = layer.apply(params, {"running_mean": mean, "running_var": variance}, x)
        return y, layer.track(state, mean, variance, x[0, 0].numel() * count)

    return _batch_norms(net, training)


def noise_of_rows(net: Layer, rows: Tensor, count: int) -> Layer:
    """The same network for the examples `rows` (n,) of a batch of `count`, with their noise.

    A random layer multiplies its input by what its key draws, as dropout does: it draws for the
    whole batch, of which each example takes its own row.  So an example has the mask that it has
    in the whole batch, for the price of drawing that mask.
    """

    def around(inner: Apply) -> Apply:
        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            if not train or key is None:
                return inner(params, state, x, train=train, key=key)
            # Not `x.new_ones`, which under vmap would draw the whole batch for each example.
            ones = torch.ones((count, *x.shape[1:]), dtype=x.dtype, device=x.device)
            noise, state = inner(params, state, ones, train=True, key=key)
            return x * noise.index_select(0, rows), state

        return apply

    def replaced(name: str | None, layer: Layer) -> Layer:
        return wrap(layer, around) if layer.stochastic and not layer.parts else layer

    return rewrite(net, replaced)
