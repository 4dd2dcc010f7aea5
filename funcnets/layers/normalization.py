"""Batch normalisation, and the tag of layers that normalise by the statistics of their batch."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from funcnets import initializers
from funcnets._torch import functorch
from funcnets._validate import check, check_non_negative
from funcnets.core import Layer, LayerError, Params, State
from funcnets.layers._arguments import format_kind
from funcnets.layers._leaf import leaf
from funcnets.layers._weights import check_weight


class UpdateStatistics(Protocol):
    """Function `update(state, mean, variance, count) -> state` from a batch's statistics."""

    def __call__(  # noqa: D102
        self, state: State, mean: Tensor, variance: Tensor, count: int | Tensor
    ) -> State: ...


class StatisticsAsState(Protocol):
    """Function `as_state(mean, variance) -> state`."""

    def __call__(self, mean: Tensor, variance: Tensor) -> State: ...  # noqa: D102


@dataclass(frozen=True)
class BatchStatistics:
    """Tag of a layer that normalises by the statistics of its batch in training.

    In training it has to normalise each channel by its mean and biased variance in the batch, as
    `channel_statistics` gives them, and to update running statistics, its state; in evaluation it
    has to normalise by its state.  `transforms.accumulate`, `transforms.per_example_gradients` and
    `transforms.frozen_statistics` then give it the statistics of another batch.  A layer of your
    own may have this tag.

    Attributes:
        update: `update(state, mean, variance, count) -> state`, the running statistics after a
            batch of which each channel has `count` values with this mean and biased variance, (C,).
            The count is an integer, or a tensor (C,) for a batch that several processes share.
        as_state: `as_state(mean, variance) -> state`, with which evaluation normalises by exactly
            these.
    """

    update: UpdateStatistics
    as_state: StatisticsAsState


def count_batch_norms(net: Layer) -> int:
    """Return the number of layers with the tag `BatchStatistics`."""
    own = net.tag(BatchStatistics) is not None
    return own + sum(count_batch_norms(part) for _, part in net.parts)


def batch_norm(momentum: float = 0.1, eps: float = 1e-5, *, unbiased: bool = True) -> Layer:
    """Return batch normalisation of each channel of (N, C, H, W) or (N, C).

    It computes what `torch.nn.BatchNorm2d` and `BatchNorm1d` do, weight · x̂ + bias with
    x̂ = (x - mean) / √(variance + eps).  Training normalises by the mean and the biased variance of
    the batch, evaluation by the running statistics.

    Parameters: `weight` of ones and `bias` of zeros, (C,).  State: `running_mean` of zeros and
    `running_var` of ones, (C,), float32 or wider whatever the input.

    Args:
        momentum: part of the batch in the running statistics, which become
            (1 - momentum) · running + momentum · batch; 0 to 1.
        eps: added to the variance; 0 or more.
        unbiased: True if the running variance averages unbiased variances, as in PyTorch, False if
            biased ones.

    Raises ValueError for a momentum or eps out of range; LayerError, in training, where a channel
    has less than two values, and for single examples under `vmap`.

    The gradient of a channel's weight is Σ g·(x - mean) / √(variance + eps), exactly 0 where all
    values of a channel are equal, as in PyTorch, under `jit` on a CPU (back ends `graph` and
    `native`, if x and g are stored in one memory format).  Elsewhere it is the difference of two
    sums, Σ g·x - mean · Σ g, which saves a pass over the map, and has a rounding error, relative to
    these sums, of float32's 6e-8: up to 3e-2 where the variance is 0 (4,096 values of 3.7, and
    normal g).
    Ioffe and Szegedy, Batch Normalization, 2015, algorithms 1 and 2.

    >>> import torch
    >>> from funcnets import layers, random
    >>> norm, x = layers.batch_norm(eps=0), torch.tensor([[1.0], [3.0]])
    >>> params, state = norm.init(random.key(0), x)
    >>> y, state = norm.apply(params, state, x, train=True)
    >>> y.flatten().tolist()
    [-1.0, 1.0]
    >>> state["running_mean"]
    tensor([0.2000])
    """
    kind = format_kind(
        "batch_norm", momentum=(momentum, 0.1), eps=(eps, 1e-5), unbiased=(unbiased, True)
    )
    check(f"{kind}: momentum", momentum, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    check_non_negative(**{f"{kind}: eps": eps})

    def update(state: State, mean: Tensor, variance: Tensor, count: int | Tensor) -> State:
        _check_count(kind, count)
        batch = _as_state(mean, variance * (count / (count - 1) if unbiased else 1.0))
        return {
            name: torch.lerp(state[name], value.to(state[name].dtype), momentum)
            for name, value in batch.items()
        }

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        weight, bias = params["weight"], params["bias"]
        check_weight(kind, x, weight, (weight.shape[0],), weight.shape[0], "channels")
        mean, variance = state["running_mean"], state["running_var"]
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        if train:
            _check_not_split(kind, x, weight)
            count = x.numel() // x.shape[1]
            _check_count(kind, count)  # before `channel_statistics`, whose torch function warns
            mean, variance = channel_statistics(x)
            state = update(state, mean, variance, count)
        scale = weight * torch.rsqrt(variance + eps)
        shift = bias - mean * scale
        channel = (..., *[None] * (x.ndim - 2))
        return torch.addcmul(shift[channel], precise, scale[channel]).to(x.dtype), state

    return leaf(
        kind,
        _init_batch_norm,
        apply,
        ranks=(2, 4),
        params=("weight", "bias"),
        state=("running_mean", "running_var"),
        tags=(BatchStatistics(update, _as_state),),
    )


def _init_batch_norm(key: Tensor, x: Tensor) -> tuple[Params, State]:
    shape, precise = (x.shape[1],), torch.promote_types(x.dtype, torch.float32)
    zeros, ones = initializers.zeros(), initializers.ones()
    params = {"weight": ones(key, shape, x.dtype), "bias": zeros(key, shape, x.dtype)}
    return params, _as_state(zeros(key, shape, precise), ones(key, shape, precise))


def _as_state(mean: Tensor, variance: Tensor) -> State:
    return {"running_mean": mean, "running_var": variance}


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of (N, C, H, W) or (N, C), (C,) each.

    They are float32 or wider whatever the input.  Batch norm normalises by them in training.

    >>> import torch
    >>> from funcnets import layers
    >>> layers.channel_statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    (tensor([2., 5.]), tensor([1., 0.]))
    """
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(precise, [0, *range(2, x.ndim)], correction=0)
    return mean, variance


def _check_count(kind: str, count: int | Tensor) -> None:
    """Raise LayerError for a batch that has no variance; the value of a tensor is not read."""
    if isinstance(count, int) and count < 2:
        raise LayerError(
            f"{kind}: got {'one value' if count else 'no value'} per channel in training: its "
            "variance is undefined; use a larger batch, or train=False"
        )


def _check_not_split(kind: str, x: Tensor, weight: Tensor) -> None:
    """Raise LayerError for a single example that `vmap` has taken out of a batch."""
    if x.shape[0] == 1 and is_vmapped(x) and not is_vmapped(weight):
        raise LayerError(
            f"{kind}: in training under vmap over examples, each would be normalised by its own "
            "statistics: use funcnets.transforms.per_example_gradients(..., statistics=...), or "
            "funcnets.transforms.frozen_statistics(net)"
        )


def is_vmapped(x: Tensor) -> bool:
    """Return True if `torch.func.vmap` maps over `x`, at any level of nested transforms."""
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False
