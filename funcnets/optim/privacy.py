"""Clipping of per-example gradients, and noise: the parts of differentially private SGD (DP-SGD).

Abadi et al., "Deep learning with differential privacy", 2016, algorithm 1.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets._validate import check, check_non_negative, check_steps
from funcnets.optim.transformations import (
    Optimizer,
    chain,
    check_state,
    stateless,
    step_zero,
)


class NoiseState(NamedTuple):
    """State of `add_noise`."""

    step: Tensor  # int64, 0-d: updates made so far
    key: Tensor  # int32, (2,)


def private(max_norm: float, noise: float, batch_size: int, key: Tensor) -> Optimizer:
    """Return the private mean of per-example gradients: clipped, averaged, and with noise added.

    Put it before the optimizer, and train with `gradient=transforms.per_example("frozen")`, which
    gives per-example gradients:

    >>> from funcnets import optim, random
    >>> private = optim.private(max_norm=1.0, noise=1.1, batch_size=256, key=random.key(0))
    >>> optimizer = optim.chain(private, optim.sgd(0.5))

    Args:
        max_norm: largest Euclidean norm of the gradient of one example.
        noise: noise multiplier; the standard deviation is noise · max_norm / batch_size.
        batch_size: the divisor of the mean, whatever the length of a batch, so that one example
            moves the mean by at most max_norm / batch_size.
        key: (2,), draws the noise.

    The privacy that a training guarantees depends also on how batches are drawn, which a privacy
    accountant has to know.

    Raises ValueError for a value out of range, and from `update` as `clip_per_example` does.
    """
    check_non_negative(noise=noise)
    clip = clip_per_example(max_norm, batch_size)
    return chain(clip, add_noise(noise * max_norm / batch_size, key))


def clip_per_example(max_norm: float, batch_size: int | None = None) -> Optimizer:
    """updates = Σ g_i / max(1, ‖g_i‖ / max_norm) / batch_size, the mean of clipped gradients.

    The gradients have a first axis of length N, an entry for each example; the updates don't have
    it.  The divisor is N unless `batch_size` is given; with it a batch may be empty, as
    Poisson sampling draws some, and the updates are 0.

    Raises ValueError unless `max_norm` is a finite number above 0 and `batch_size` at least 1, and,
    from `update`, for gradients that aren't per-example gradients.
    """
    check("max_norm", max_norm, lambda value: 0 < value < float("inf"), "a finite number above 0")
    if batch_size is not None:
        check_steps(batch_size=batch_size)

    def clip(grads: Any, params: Any) -> Any:
        tree.map_named(_check_per_example, params, grads)
        norms = per_example_norms(grads)
        if not (batch_size or len(norms)):
            raise ValueError(
                "clip_per_example: the batch is empty, so the mean has no divisor: give "
                "batch_size, the expected number of examples"
            )
        weights = max_norm / norms.clamp(min=max_norm) / (batch_size or len(norms))

        def mean(leaf: Tensor) -> Tensor:
            # In float32 or wider: half precision would round the weights before they are used.
            wide = torch.promote_types(leaf.dtype, weights.dtype)
            total: Tensor = torch.tensordot(weights.to(wide), leaf.to(wide), 1)
            return total.to(leaf.dtype)

        return tree.map(mean, grads)

    return stateless(clip)


def _check_per_example(name: str, param: Tensor, grad: Tensor) -> None:
    if grad.ndim != param.ndim + 1 or grad.shape[1:] != param.shape:
        raise ValueError(
            f"{name}: the gradient has shape {tuple(grad.shape)}, the parameter "
            f"{tuple(param.shape)}; expected a per-example gradient, with a first axis of length "
            "N: make the step with gradient=transforms.per_example(...)"
        )


def per_example_norms(grads: Any) -> Tensor:
    """Return the Euclidean norm of each example's gradient, all leaves taken as one vector.

    From leaves of shape (N, …), the result is (N,), in float32 or wider.

    >>> import torch
    >>> from funcnets import optim
    >>> grads = {"weight": torch.tensor([[3.0], [0.0]]), "bias": torch.tensor([4.0, 1.0])}
    >>> optim.per_example_norms(grads)
    tensor([5., 1.])
    """
    leaves = tree.leaves(grads)
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in leaves], torch.float32)
    rows = [leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves]
    norms = torch.stack([torch.linalg.vector_norm(row, dim=1, dtype=dtype) for row in rows])
    norm: Tensor = torch.linalg.vector_norm(norms, dim=0)
    return norm


def add_noise(deviation: float, key: Tensor) -> Optimizer:
    """updates = updates + deviation · normal, drawn anew for each step and leaf.

    Leaf i at step t draws from `fold_in(fold_in(key, t), i)`; the key is part of the state.

    Raises ValueError if `deviation` is negative.
    """
    check_non_negative(deviation=deviation)

    def init(params: Any) -> NoiseState:
        # A copy, so that the state may be donated and the key kept.
        return NoiseState(step_zero(params), key.clone())

    def update(grads: Any, state: NoiseState, params: Any) -> tuple[Any, NoiseState]:
        check_state(state, NoiseState, "a NoiseState")
        step_key = random.fold_in(state.key, state.step)
        leaves, structure = tree.flatten(grads)
        noisy = [
            leaf + deviation * random.normal(random.fold_in(step_key, i), leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        return tree.unflatten(noisy, structure), NoiseState(state.step + 1, state.key)

    return Optimizer(init, update)
