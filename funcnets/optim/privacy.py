"""Clipping of each example's gradient, and noise: the parts of differentially private SGD.

Abadi et al., "Deep learning with differential privacy", 2016, algorithm 1.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets._validate import check, check_non_negative, check_steps
from funcnets.optim.transformations import Optimizer, chain, first_step, global_norm, stateless


class NoiseState(NamedTuple):
    """Memory of `add_noise`."""

    step: Tensor  # int64, (): updates made so far
    key: Tensor  # int32, (2,)


def private(max_norm: float, noise: float, batch_size: int, key: Tensor) -> Optimizer:
    """The private mean of per-example gradients: clipped, averaged, and noised.

    Put it before the optimizer: `chain(private(1.0, 1.1, 256, key), sgd(0.5))`, and let the step
    take `gradient=transforms.per_example("frozen")`.  The noise has standard deviation
    noise · max_norm / batch_size; whatever batch is given, `batch_size` is the divisor, so that one
    example moves the mean by max_norm / batch_size at most.

    How private a training is depends on how batches are drawn, which an accountant has to know.
    Raises ValueError for a value out of range, and from `update` as `clip_per_example` does.
    """
    check_non_negative(noise=noise)
    clip = clip_per_example(max_norm, batch_size)
    return chain(clip, add_noise(noise * max_norm / batch_size, key))


def clip_per_example(max_norm: float, batch_size: int | None = None) -> Optimizer:
    """The mean of per-example gradients, each scaled to a norm of at most `max_norm`.

    updates = Σ g_i / max(1, ‖g_i‖ / max_norm) / batch_size, over gradients with a first axis of N,
    which the updates don't have; the divisor is N unless `batch_size` is given.

    Raises ValueError unless `max_norm` is a finite number above 0 and `batch_size` at least 1, and,
    from `update`, for gradients that aren't of each example.
    """
    check("max_norm", max_norm, lambda value: 0 < value < float("inf"), "a finite number above 0")
    if batch_size is not None:
        check_steps(batch_size=batch_size)

    def clip(grads: Any, params: Any) -> Any:
        tree.map_named(_check_per_example, params, grads)
        norms = per_example_norms(grads)
        weights = max_norm / norms.clamp(min=max_norm) / (batch_size or len(norms))
        return tree.map(lambda leaf: torch.tensordot(weights.to(leaf.dtype), leaf, 1), grads)

    return stateless(clip)


def _check_per_example(name: str, param: Tensor, grad: Tensor) -> None:
    if grad.ndim != param.ndim + 1 or grad.shape[1:] != param.shape:
        raise ValueError(
            f"{name}: the gradient has shape {tuple(grad.shape)}, the parameter "
            f"{tuple(param.shape)}; expected a gradient of each example, with a first axis of N: "
            "make the step with gradient=transforms.per_example(...)"
        )


def per_example_norms(grads: Any) -> Tensor:
    """The norm of each example's gradient, all leaves as one vector: (N,), float32 or wider."""
    return torch.func.vmap(global_norm)(grads)


def add_noise(deviation: float, key: Tensor) -> Optimizer:
    """updates = updates + deviation · normal, new numbers at each step and leaf.

    Leaf i at step t draws from `fold_in(fold_in(key, t), i)`; the key is in the state.

    Raises ValueError if `deviation` is negative.
    """
    check_non_negative(deviation=deviation)

    def init(params: Any) -> NoiseState:
        # A copy, so that the state may be donated and the key kept.
        return NoiseState(first_step(params), key.clone())

    def update(grads: Any, state: NoiseState, params: Any) -> tuple[Any, NoiseState]:
        step_key = random.fold_in(state.key, state.step)
        leaves, structure = tree.flatten(grads)
        noisy = [
            leaf + deviation * random.normal(random.fold_in(step_key, i), leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        return tree.unflatten(noisy, structure), NoiseState(state.step + 1, state.key)

    return Optimizer(init, update)
