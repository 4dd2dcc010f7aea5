"""Optimizers as pairs of pure functions, and the gradient transformations that they are chains of.

The design is optax's; the numbers are those of `torch.optim`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from funcnets import tree
from funcnets._validate import check, check_non_negative, check_rate
from funcnets.optim.schedules import Schedule

LearningRate = float | Tensor | Schedule
"""A number, a 0-d tensor (which may be traced, vmapped over or differentiated), or a schedule."""

SMALL_LEAF = 1 << 14  # numbers up to which leaves are copied to one vector, to be summed at once


class Optimizer(NamedTuple):
    """A rule that turns gradients into updates; both functions are pure.

    Attributes:
        init: `init(params) -> opt_state`, a tree of tensors on the device of `params`.
        update: `update(grads, opt_state, params) -> (updates, opt_state)`; the updates, to be
            added by `apply_updates`, have the structure, shapes and dtypes of `grads`.
        is_whole: True if the updates are steps downhill, scaled by a learning rate; False for a
            gradient transformation, a part of a `chain`.  `masked` depends on it.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    is_whole: bool = False


class StepState(NamedTuple):
    """State of `scale_by_learning_rate` with a schedule, and of `dampen`."""

    step: Tensor  # int64, 0-d: updates made so far


class MomentumState(NamedTuple):
    """State of `add_momentum`."""

    trace: Any  # like params: the momentum buffer, torch's `momentum_buffer`


class AdamState(NamedTuple):
    """State of `scale_by_adam`."""

    step: Tensor  # int64, 0-d: updates made so far
    mean: Any  # like params: running mean of the gradient, torch's `exp_avg`
    square: Any  # like params: running mean of its square, torch's `exp_avg_sq`


def apply_updates(params: Any, updates: Any) -> Any:
    """Return `params + updates`, leaf by leaf, each in the dtype of the parameter.

    Raises ValueError for an update of another shape than its parameter.

    >>> import torch
    >>> apply_updates({"bias": torch.ones(2)}, {"bias": torch.tensor([0.5, -0.5])})
    {'bias': tensor([1.5000, 0.5000])}
    """

    def apply(name: str, param: Tensor, update: Tensor) -> Tensor:
        if update.shape != param.shape:
            raise ValueError(
                f"{name}: the update has shape {tuple(update.shape)}, expected that of the "
                f"parameter, {tuple(param.shape)}: per-example gradients need an optimizer that "
                "begins with what averages them, such as optim.clip_per_example"
            )
        return (param + update).to(param.dtype)

    return tree.map_named(apply, params, updates)


def chain(*optimizers: Optimizer) -> Optimizer:
    """Return the optimizer that feeds the updates of each of `optimizers` to the next.

    Its state is the tuple of theirs.  Raises TypeError for a part that is no optimizer; `update`
    raises ValueError for the state of another optimizer.

    >>> import torch
    >>> from funcnets import optim
    >>> optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1))
    >>> params, grads = {"weight": torch.zeros(2)}, {"weight": torch.tensor([30.0, 40.0])}
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> updates
    {'weight': tensor([-0.0600, -0.0800])}
    """

    for index, optimizer in enumerate(optimizers):
        check_optimizer(f"part {index} of the chain", optimizer)

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(optimizer.init(params) for optimizer in optimizers)

    def update(grads: Any, opt_state: Any, params: Any) -> tuple[Any, tuple[Any, ...]]:
        check_state(opt_state, tuple, f"a tuple of length {len(optimizers)}", len(optimizers))
        if not all(isinstance(leaf, Tensor) for leaf in tree.leaves(grads)):
            _refuse_gradients(grads)
        states = []
        for optimizer, state in zip(optimizers, opt_state, strict=True):
            grads, state = optimizer.update(grads, state, params)
            states.append(state)
        return grads, tuple(states)

    return Optimizer(init, update, any(optimizer.is_whole for optimizer in optimizers))


def sgd(
    learning_rate: LearningRate,
    momentum: float = 0.0,
    *,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent, as `torch.optim.SGD`.

    Args:
        learning_rate: a number, a schedule (see `optim.schedules`), or a 0-d tensor, which may be
            created inside a function under `vmap`, to train at several rates side by side.
        momentum: factor of the momentum buffer; 0 keeps no buffer.
        nesterov: Nesterov's momentum; needs `momentum` above 0 and no dampening.
        weight_decay: this times the parameter is added to its gradient.
        dampening: the gradient is added to the momentum buffer times 1 - dampening.

    At a constant learning rate and without momentum the state has no leaves.

    Raises ValueError for a hyper-parameter out of range.  Momentum: Sutskever et al., "On the
    importance of initialization and momentum in deep learning", 2013.

    >>> import torch
    >>> from funcnets import optim
    >>> params, grads = {"weight": torch.tensor([1.0])}, {"weight": torch.tensor([2.0])}
    >>> optimizer = optim.sgd(0.1, momentum=0.9)
    >>> opt_state = optimizer.init(params)
    >>> for _ in range(2):
    ...     updates, opt_state = optimizer.update(grads, opt_state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> params  # 1 - 0.1 · 2 - 0.1 · (0.9 · 2 + 2)
    {'weight': tensor([0.4200])}
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
        parts += [add_momentum(momentum, nesterov=nesterov)]
    return chain(*parts, scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: LearningRate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam, as `torch.optim.Adam`: weight decay is added to the gradient.

    Args:
        learning_rate: as `sgd` takes it.
        betas: decay rates of the running means of the gradient and of its square, in [0, 1).
        eps: added to the square root in the denominator.
        eps_root: added under the square root, so that derivatives of the update by the gradient
            stay small where the gradient is 0 (for meta-gradients; as optax's).
        weight_decay: this times the parameter is added to its gradient.

    The running means are float32 or wider, also for parameters of half precision.

    Raises ValueError for a hyper-parameter out of range.  Kingma and Ba, "Adam: a method for
    stochastic optimization", 2015, algorithm 1.

    >>> import torch
    >>> from funcnets import optim
    >>> params, grads = {"weight": torch.zeros(2)}, {"weight": torch.tensor([5.0, -0.001])}
    >>> optimizer = optim.adam(0.01)
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> updates  # the first step moves each parameter by the learning rate
    {'weight': tensor([-0.0100,  0.0100])}
    """
    decay = [add_decayed_weights(weight_decay)] if weight_decay else []
    return chain(*decay, scale_by_adam(betas, eps, eps_root), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: LearningRate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay, as `torch.optim.AdamW`; arguments as `adam` takes them.

    Raises ValueError for a hyper-parameter out of range.  Loshchilov and Hutter, "Decoupled
    weight decay regularization", 2019, algorithm 2.
    """
    decay = [add_decayed_weights(weight_decay)] if weight_decay else []
    return chain(scale_by_adam(betas, eps, eps_root), *decay, scale_by_learning_rate(learning_rate))


def scale_by_learning_rate(learning_rate: LearningRate) -> Optimizer:
    """updates = -rate · updates, the step downhill; the last part of an optimizer.

    Raises ValueError for a rate that is negative, not finite, or a tensor with dimensions.
    """
    if callable(learning_rate):
        schedule = learning_rate

        def update(grads: Any, state: StepState, params: Any) -> tuple[Any, StepState]:
            check_state(state, StepState, "a StepState, as the rate is a schedule")
            return _scale(grads, -schedule(state.step)), StepState(state.step + 1)

        return Optimizer(lambda params: StepState(step_zero(params)), update, True)
    check_rate(learning_rate=learning_rate)
    return stateless(lambda grads, params: _scale(grads, -learning_rate))._replace(is_whole=True)


def add_decayed_weights(weight_decay: float) -> Optimizer:
    """updates = updates + weight_decay · params.

    Raises ValueError if `weight_decay` is negative.
    """
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
        check_state(state, StepState, "a StepState")
        factor = 1 - dampening * (state.step > 0).to(torch.float64)
        return _scale(grads, factor), StepState(state.step + 1)

    return Optimizer(lambda params: StepState(step_zero(params)), update)


def add_momentum(momentum: float, *, nesterov: bool = False) -> Optimizer:
    """trace = momentum · trace + updates; the trace is the new updates.

    With `nesterov`, the new updates are updates + momentum · trace.  optax's `trace`.

    Raises ValueError if `momentum` is negative.
    """
    check_non_negative(momentum=momentum)

    def update(grads: Any, state: MomentumState, params: Any) -> tuple[Any, MomentumState]:
        check_state(state, MomentumState, "a MomentumState")
        new = tree.map(lambda g, t: g + momentum * t, grads, state.trace)
        updates = tree.map(lambda g, t: g + momentum * t, grads, new) if nesterov else new
        return updates, MomentumState(new)

    return Optimizer(lambda params: MomentumState(tree.map(torch.zeros_like, params)), update)


def scale_by_adam(
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, eps_root: float = 0.0
) -> Optimizer:
    """updates = mean / (√(square + eps_root) + eps), of bias-corrected running means of g and |g|².

    Computed in float32 or wider, and rounded to the dtype of the gradients.  The derivative of the
    square root at 0 counts as 0, so that meta-gradients are finite.

    Raises ValueError for betas outside [0, 1) or a negative eps or eps_root.  Kingma and Ba, "Adam:
    a method for stochastic optimization", 2015, algorithm 1.
    """
    for beta in betas:
        check("betas", beta, lambda value: 0 <= value < 1, "two numbers in [0, 1)")
    check_non_negative(eps=eps, eps_root=eps_root)
    beta1, beta2 = betas

    def init(params: Any) -> AdamState:
        mean = tree.map(lambda p: torch.zeros_like(p, dtype=_wide(p.dtype)), params)
        square = tree.map(lambda p: torch.zeros_like(p, dtype=_wide(p.dtype).to_real()), params)
        return AdamState(step_zero(params), mean, square)

    def update(grads: Any, state: AdamState, params: Any) -> tuple[Any, AdamState]:
        check_state(state, AdamState, "an AdamState")
        step = state.step + 1
        wide = tree.map(lambda g: g.to(_wide(g.dtype)), grads)
        mean = tree.map(lambda g, m: beta1 * m + (1 - beta1) * g, wide, state.mean)
        square = tree.map(lambda g, s: beta2 * s + (1 - beta2) * _square(g), wide, state.square)
        bias1, bias2 = (1 - beta ** step.to(torch.float64) for beta in betas)

        def direction(g: Tensor, m: Tensor, s: Tensor) -> Tensor:
            corrected = s / bias2.to(s.dtype) + eps_root
            root = corrected.clamp(min=torch.finfo(s.dtype).tiny).sqrt()
            return (m / bias1.to(s.dtype) / (root + eps)).to(g.dtype)

        return tree.map(direction, grads, mean, square), AdamState(step, mean, square)

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
    """Return the Euclidean norm of all leaves, taken as one vector.

    The result is 0-d, in float32 or wider; 0 for a tree without leaves.
    """
    leaves = tree.leaves(values)
    if not leaves:
        return torch.zeros(())
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in leaves], torch.float32)
    # A call for each of a network's many small leaves would cost more than their numbers.
    small = [leaf.flatten().to(dtype) for leaf in leaves if leaf.numel() <= SMALL_LEAF]
    parts = [leaf for leaf in leaves if leaf.numel() > SMALL_LEAF]
    parts += [torch.cat(small)] if small else []
    norms = [torch.linalg.vector_norm(part, dtype=dtype) for part in parts]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def stateless(function: Callable[[Any, Any], Any]) -> Optimizer:
    """Return the optimizer without state whose updates are `function(grads, params)`."""

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        check_state(state, tuple, "(), as it has no state", 0)
        return function(grads, params), state

    return Optimizer(lambda params: (), update)


def check_optimizer(what: str, optimizer: Any) -> None:
    """Raise TypeError unless `optimizer`, which an error calls `what`, is an Optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{what} is {optimizer!r}, expected an Optimizer: call the function that makes it, as "
            "in optim.sgd(0.1)"
        )


def check_state(state: Any, kind: type[Any], expected: str, length: int | None = None) -> None:
    """Raise ValueError unless `state` is of this type and, if given, this length."""
    if not isinstance(state, kind) or (length is not None and len(state) != length):
        is_plain = type(state) is tuple
        given = f"a tuple of length {len(state)}" if is_plain else type(state).__name__
        raise ValueError(
            f"the optimizer's state is {given}; expected {expected}: pass the state that this "
            "optimizer's own init returned"
        )


def _scale(values: Any, factor: float | Tensor) -> Any:
    """Return each leaf times `factor`, computed in float32 or wider, in the dtype of the leaf."""

    for leaf in tree.leaves(values):
        if not isinstance(leaf, Tensor):
            _refuse_gradients(values)

    def scale(leaf: Tensor) -> Tensor:
        if not isinstance(factor, Tensor):
            return leaf * factor
        wide = _wide(leaf.dtype)
        return (leaf.to(wide) * factor.to(wide.to_real())).to(leaf.dtype)

    return tree.map(scale, values)


def _refuse_gradients(values: Any) -> NoReturn:
    """Raise TypeError that names the leaf that is no tensor."""
    named = tree.flatten_named(values)
    name = next(name for name, leaf in named.items() if not isinstance(leaf, Tensor))
    raise TypeError(
        f"{name}: the gradient is {named[name]!r}; expected a tensor: give zeros for a parameter "
        "that has none, or train the others alone by optim.masked"
    )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which numbers of `dtype` are scaled and squared."""
    return torch.promote_types(dtype, torch.float32)


def _square(value: Tensor) -> Tensor:
    """Return |value|², real also for complex numbers."""
    return (value * value.conj()).real if value.is_complex() else value * value


def step_zero(params: Any) -> Tensor:
    """Return a counter of steps at 0, int64 and 0-d, on the device of `params`."""
    leaves = tree.leaves(params)
    return torch.zeros((), dtype=torch.int64, device=leaves[0].device if leaves else None)
