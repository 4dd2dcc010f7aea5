"""Optimizers as pairs of pure functions, and the small ones that big ones are chains of."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets._validate import check, check_non_negative, check_rate
from funcnets.optim.schedules import Schedule

LearningRate = float | Tensor | Schedule
"""A number, a 0-d tensor (which may be traced, vmapped over or differentiated), or a schedule."""


class Optimizer(NamedTuple):
    """A rule that turns gradients into updates; both functions are pure.

    Attributes:
        init: `init(params) -> opt_state`, a tree of tensors on the device of `params`.
        update: `update(grads, opt_state, params) -> (updates, opt_state)`; the updates, to be
            added by `apply_updates`, have the structure, shapes and dtypes of `grads`.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


class StepState(NamedTuple):
    """Memory of `scale_by_learning_rate` with a schedule, and of `dampen`."""

    step: Tensor  # int64, (): updates made so far


class TraceState(NamedTuple):
    """Memory of `trace`."""

    trace: Any  # like params: torch's `momentum_buffer`


class AdamState(NamedTuple):
    """Memory of `scale_by_adam`."""

    step: Tensor  # int64, (): updates made so far
    mean: Any  # like params: running mean of the gradient, torch's `exp_avg`
    square: Any  # like params: running mean of its square, torch's `exp_avg_sq`


def apply_updates(params: Any, updates: Any) -> Any:
    """`params + updates`, leaf by leaf, in the dtype of the parameter.

    Raises ValueError for an update of another shape than its parameter.
    """

    def apply(name: str, param: Tensor, update: Tensor) -> Tensor:
        if update.shape != param.shape:
            raise ValueError(
                f"{name}: the update has shape {tuple(update.shape)}, the parameter "
                f"{tuple(param.shape)}: gradients of each example need an optimizer that begins "
                "with what joins them, such as optim.clip_per_example"
            )
        return (param + update).to(param.dtype)

    return tree.map_named(apply, params, updates)


def chain(*optimizers: Optimizer) -> Optimizer:
    """The optimizer that feeds each one's updates to the next; its state is a tuple of theirs."""

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(optimizer.init(params) for optimizer in optimizers)

    def update(grads: Any, opt_state: Any, params: Any) -> tuple[Any, tuple[Any, ...]]:
        if len(opt_state) != len(optimizers):
            raise ValueError(
                f"opt_state has {len(opt_state)} parts; expected {len(optimizers)}: "
                "pass what this optimizer's own init gave"
            )
        states = []
        for optimizer, state in zip(optimizers, opt_state, strict=True):
            grads, state = optimizer.update(grads, state, params)
            states.append(state)
        return grads, tuple(states)

    return Optimizer(init, update)


def sgd(
    learning_rate: LearningRate,
    momentum: float = 0.0,
    *,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent, as `torch.optim.SGD`.

    Plain SGD at a constant rate has no state.  A `learning_rate` that is a tensor may be made
    inside a function under `vmap`, which trains at several rates side by side.

    Raises ValueError for a hyper-parameter out of range, or Nesterov momentum that is 0 or
    dampened.  Momentum: Sutskever et al., "On the importance of initialization and momentum in
    deep learning", 2013.
    """
    check_non_negative(momentum=momentum, weight_decay=weight_decay)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"nesterov=True with momentum={momentum} and dampening={dampening}: "
            "Nesterov momentum needs momentum above 0 and dampening=0"
        )
    parts = [add_decayed_weights(weight_decay)] if weight_decay else []
    if momentum:
        parts += [dampen(dampening)] if dampening else []
        parts += [trace(momentum, nesterov=nesterov)]
    return chain(*parts, scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: LearningRate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam, as `torch.optim.Adam`: weight decay is added to the gradient.

    Raises ValueError for a hyper-parameter out of range.
    """
    decay = [add_decayed_weights(weight_decay)] if weight_decay else []
    return chain(*decay, scale_by_adam(betas, eps), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: LearningRate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    Raises ValueError for a hyper-parameter out of range.  Loshchilov and Hutter, "Decoupled
    weight decay regularization", 2019.
    """
    decay = [add_decayed_weights(weight_decay)] if weight_decay else []
    return chain(scale_by_adam(betas, eps), *decay, scale_by_learning_rate(learning_rate))


def scale_by_learning_rate(learning_rate: LearningRate) -> Optimizer:
    """updates = -rate · updates, the step downhill; the last part of an optimizer.

    Raises ValueError for a rate that is negative, not finite, or a tensor with dimensions.
    """
    if callable(learning_rate):
        schedule = learning_rate

        def update(grads: Any, state: StepState, params: Any) -> tuple[Any, StepState]:
            return _scale(grads, -schedule(state.step)), StepState(state.step + 1)

        return Optimizer(lambda params: StepState(first_step(params)), update)
    check_rate(learning_rate=learning_rate)
    return stateless(lambda grads, params: _scale(grads, -learning_rate))


def add_decayed_weights(weight_decay: float) -> Optimizer:
    """updates = updates + weight_decay · params.  Raises ValueError if it is negative."""
    check_non_negative(weight_decay=weight_decay)
    return stateless(
        lambda grads, params: tree.map(lambda g, p: g + weight_decay * p, grads, params)
    )


def dampen(dampening: float) -> Optimizer:
    """updates = (1 - dampening) · updates, from the second step on, as in `torch.optim.SGD`.

    Raises ValueError if `dampening` isn't finite.
    """
    check("dampening", dampening, math.isfinite, "a finite number")

    def update(grads: Any, state: StepState, params: Any) -> tuple[Any, StepState]:
        factor = 1 - dampening * (state.step > 0).to(torch.float64)
        return _scale(grads, factor), StepState(state.step + 1)

    return Optimizer(lambda params: StepState(first_step(params)), update)


def trace(momentum: float, *, nesterov: bool = False) -> Optimizer:
    """trace = momentum · trace + updates, which are the new updates.

    With `nesterov`, they are updates + momentum · trace instead.

    Raises ValueError if `momentum` is negative.
    """
    check_non_negative(momentum=momentum)

    def update(grads: Any, state: TraceState, params: Any) -> tuple[Any, TraceState]:
        new = tree.map(lambda g, t: g + momentum * t, grads, state.trace)
        updates = tree.map(lambda g, t: g + momentum * t, grads, new) if nesterov else new
        return updates, TraceState(new)

    return Optimizer(lambda params: TraceState(tree.map(torch.zeros_like, params)), update)


def scale_by_adam(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """updates = mean / (√square + eps), from bias-corrected running means of g and g².

    Raises ValueError for betas outside [0, 1) or a negative eps.  Kingma and Ba, "Adam: a
    method for stochastic optimization", 2015, algorithm 1.
    """
    for beta in betas:
        check("betas", beta, lambda value: 0 <= value < 1, "two numbers in [0, 1)")
    check_non_negative(eps=eps)
    beta1, beta2 = betas

    def init(params: Any) -> AdamState:
        zeros = functools.partial(tree.map, torch.zeros_like)
        return AdamState(first_step(params), zeros(params), zeros(params))

    def update(grads: Any, state: AdamState, params: Any) -> tuple[Any, AdamState]:
        step = state.step + 1
        mean = tree.map(lambda g, m: beta1 * m + (1 - beta1) * g, grads, state.mean)
        square = tree.map(lambda g, s: beta2 * s + (1 - beta2) * g * g, grads, state.square)
        bias1, bias2 = (1 - beta ** step.to(torch.float64) for beta in betas)

        def direction(m: Tensor, s: Tensor) -> Tensor:
            return m / bias1.to(m.dtype) / ((s / bias2.to(s.dtype)).sqrt() + eps)

        return tree.map(direction, mean, square), AdamState(step, mean, square)

    return Optimizer(init, update)


def clip_by_global_norm(max_norm: float) -> Optimizer:
    """updates · min(1, max_norm / (global norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_`.

    Put it before the optimizer: `chain(clip_by_global_norm(1.0), sgd(0.1))`.

    Raises ValueError if `max_norm` is negative.
    """
    check_non_negative(max_norm=max_norm)
    return stateless(
        lambda grads, params: _scale(grads, (max_norm / (global_norm(grads) + 1e-6)).clamp(max=1.0))
    )


def global_norm(values: Any) -> Tensor:
    """The Euclidean norm of all leaves taken as one vector: 0-d, float32 or wider; 0 if empty."""
    leaves = tree.leaves(values)
    if not leaves:
        return torch.zeros(())
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in leaves], torch.float32)
    norms = [torch.linalg.vector_norm(leaf, dtype=dtype) for leaf in leaves]
    return torch.linalg.vector_norm(torch.stack(norms))


def stateless(function: Callable[[Any, Any], Any]) -> Optimizer:
    """The optimizer without memory that makes updates by `function(grads, params)`."""
    return Optimizer(
        lambda params: (), lambda grads, state, params: (function(grads, params), state)
    )


def _scale(values: Any, factor: float | Tensor) -> Any:
    """Each leaf times `factor`, in the dtype of the leaf."""
    if isinstance(factor, Tensor):
        return tree.map(lambda leaf: leaf * factor.to(leaf.dtype), values)
    return tree.map(lambda leaf: leaf * factor, values)


def first_step(params: Any) -> Tensor:
    """The step 0, int64, on the device of `params`."""
    leaves = tree.leaves(params)
    return torch.zeros((), dtype=torch.int64, device=leaves[0].device if leaves else None)
