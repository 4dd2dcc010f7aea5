"""Choice of the statistics by which batch norms normalise.

Each function returns a network that takes the same parameters and keys.  It changes only layers
with the tag `layers.BatchStatistics`.  In training, another layer without parts that changes its
state is refused by a LayerError: it may have a batch norm inside.
"""

import itertools
from collections.abc import Callable

from torch import Tensor

from funcnets import layers
from funcnets.core import Layer, LayerError, Params, State, rewrite, wrap
from funcnets.interop.untagged_state import with_constant_state
from funcnets.layers import BatchStatistics, count_batch_norms
from funcnets.transforms.remat import Rematerialized

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel, (C,) each."""

MomentsByNumber = dict[int, Moments]
"""Moments of batch norms, each by its number in the order of `core.rewrite`."""


class UnknownMoments(Exception):
    """Signal that a batch norm was reached whose moments are not among those given."""


Normalize = Callable[[int, Layer, BatchStatistics, Params, State, Tensor], tuple[Tensor, State]]


def _with_training(net: Layer, normalize: Normalize) -> Layer:
    """Return the network whose i-th batch norm in training is `normalize`.

    Called as `normalize(i, layer, tag, params, state, x)`, where `layer` is the batch norm itself
    and `tag` its `BatchStatistics`, it returns the output and the new state.
    """
    numbers = itertools.count()

    def replaced(name: str | None, layer: Layer) -> Layer:
        tag = layer.tag(BatchStatistics)
        if tag is None:
            return with_constant_state(layer)
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
            return normalize(number, layer, tag, params, state, x)

        return wrap(layer, lambda inner: apply)

    return rewrite(net, replaced)


def _check_not_rematerialized(layer: Layer, path: tuple[str, ...]) -> None:
    if layer.tag(Rematerialized) is not None and layer.parts and count_batch_norms(layer):
        raise LayerError(
            "remat: a batch norm inside can't share the statistics of the whole batch: use remat "
            "for parts without batch norm, or for the batch norm by itself, or choose other "
            "`statistics`",
            path,
        )
    for name, part in layer.parts:
        _check_not_rematerialized(part, path if name is None else (*path, name))


def frozen_statistics(net: Layer) -> Layer:
    """Return the network whose batch norms use and keep their running statistics in training.

    The output for an example then depends on no other example.  Other layers train as before:
    dropout draws its masks.

    >>> import torch
    >>> from funcnets import layers, random, transforms
    >>> frozen, x = transforms.frozen_statistics(layers.batch_norm(eps=0)), torch.tensor([[2.0]])
    >>> params, state = frozen.init(random.key(0), x)
    >>> frozen.apply(params, state, x, train=True)[0]
    tensor([[2.]])
    """

    def normalize(
        number: int, layer: Layer, tag: BatchStatistics, params: Params, state: State, x: Tensor
    ) -> tuple[Tensor, State]:
        return layer.apply(params, state, x)

    return _with_training(net, normalize)


def record_moments(net: Layer, into: MomentsByNumber) -> Layer:
    """Return the network whose batch norms in training write the moments of their input to `into`.

    Raises LayerError for a batch norm inside a layer under `remat`: a recorded value can't leave it
    together with its derivatives; and, from `apply`, for one that runs twice in a call.
    """
    _check_not_rematerialized(net, ())

    def normalize(
        number: int, layer: Layer, tag: BatchStatistics, params: Params, state: State, x: Tensor
    ) -> tuple[Tensor, State]:
        if number in into:
            raise LayerError(
                f"{layer.kind}: runs twice in a call, so it has no single statistics of the whole "
                "batch: use a batch norm for each place, or frozen statistics"
            )
        into[number] = layers.channel_statistics(x)
        return layer.apply(params, state, x, train=True)

    return _with_training(net, normalize)


def normalize_by(net: Layer, moments: MomentsByNumber, count: int) -> Layer:
    """Return the network whose batch norms in training normalise by `moments`.

    Running statistics become what they are after a batch of `count` examples with these moments.
    `apply` raises UnknownMoments at the first batch norm whose moments are not given.
    """

    def normalize(
        number: int, layer: Layer, tag: BatchStatistics, params: Params, state: State, x: Tensor
    ) -> tuple[Tensor, State]:
        if number not in moments:
            raise UnknownMoments
        mean, variance = moments[number]
        y, _ = layer.apply(params, tag.as_state(mean, variance), x)
        return y, tag.update(state, mean, variance, x[0, 0].numel() * count)

    return _with_training(net, normalize)
