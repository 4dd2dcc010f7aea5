"""Learning rate schedules: functions from the step to the learning rate.

>>> import torch
>>> from funcnets import optim
>>> schedule = optim.warmup(2, optim.linear(0.3, total_steps=4))
>>> [round(float(schedule(torch.tensor(step))), 3) for step in range(7)]
[0.1, 0.2, 0.3, 0.225, 0.15, 0.075, 0.0]
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from funcnets._validate import check, check_non_negative, check_rate, check_steps

Schedule = Callable[[Tensor], Tensor]
"""The learning rate (0-d, float64) at a step (0-d, int64, or a number), counted from 0."""


def constant(value: float | Tensor) -> Schedule:
    """Return the schedule with the learning rate `value` at every step.

    Raises ValueError for a negative rate.
    """
    check_rate(value=value)
    return lambda step: torch.ones_like(_as_count(step)) * value


def step_decay(value: float | Tensor, every: int, factor: float) -> Schedule:
    """value · factor^⌊step / every⌋, as `torch.optim.lr_scheduler.StepLR`.

    Raises ValueError for a negative rate or factor, or `every` below 1.

    >>> import torch
    >>> from funcnets import optim
    >>> schedule = optim.step_decay(0.8, every=2, factor=0.5)
    >>> [float(schedule(torch.tensor(step))) for step in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """
    check_rate(value=value)
    check_steps(every=every)
    check_non_negative(factor=factor)
    return lambda step: value * factor ** torch.floor(_as_count(step) / every)


def linear(value: float | Tensor, total_steps: int, end: float = 0.0) -> Schedule:
    """Go from `value` at step 0 in a straight line to `end` at `total_steps`, and stay there.

    As `torch.optim.lr_scheduler.LinearLR`.  Raises ValueError for a negative rate, or
    `total_steps` below 1.

    >>> import torch
    >>> from funcnets import optim
    >>> float(optim.linear(0.1, total_steps=100)(torch.tensor(50)))
    0.05
    """
    check_rate(value=value, end=end)
    check_steps(total_steps=total_steps)

    def schedule(step: Tensor) -> Tensor:
        progress = _progress(step, 0, total_steps)
        return value * (1 - progress) + end * progress

    return schedule


def cosine(value: float | Tensor, total_steps: int, end: float = 0.0) -> Schedule:
    """Go from `value` at step 0 along half a cosine to `end` at `total_steps`, and stay there.

    As `torch.optim.lr_scheduler.CosineAnnealingLR`.  Raises ValueError for a negative rate, or
    `total_steps` below 1.  Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm
    restarts", 2017, equation 5, one period.

    >>> import torch
    >>> from funcnets import optim
    >>> schedule = optim.cosine(0.2, total_steps=4)
    >>> [round(float(schedule(torch.tensor(step))), 3) for step in range(6)]
    [0.2, 0.171, 0.1, 0.029, 0.0, 0.0]
    """
    check_rate(value=value, end=end)
    check_steps(total_steps=total_steps)
    return lambda step: _half_cosine(value, end, _progress(step, 0, total_steps))


def warmup(steps: int, schedule: Schedule) -> Schedule:
    """Return `schedule` delayed by `steps` steps, with a straight climb to its first rate before.

    Step t < steps has the rate schedule(0) · (t + 1) / (steps + 1), so no step has the rate 0.
    `warmup(500, linear(0.1, total_steps - 500))` ends at `total_steps`.

    Raises ValueError if `steps` is negative.

    >>> import torch
    >>> from funcnets import optim
    >>> schedule = optim.warmup(3, optim.constant(0.4))
    >>> [round(float(schedule(torch.tensor(step))), 3) for step in range(5)]
    [0.1, 0.2, 0.3, 0.4, 0.4]
    """
    check("steps", steps, lambda value: value >= 0 and value == int(value), "0 or more steps")

    def warmed(step: Tensor) -> Tensor:
        climb = ((_as_count(step) + 1) / (steps + 1)).clamp(max=1.0)
        return schedule((torch.as_tensor(step) - steps).clamp(min=0)) * climb

    return warmed


def one_cycle(
    max_value: float | Tensor,
    total_steps: int,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Go half a cosine up to `max_value`, then half a cosine down.

    As `torch.optim.lr_scheduler.OneCycleLR`, whose names the arguments have.

    Args:
        max_value: the highest rate, at step pct_start · total_steps - 1.
        total_steps: the last rate is that of step total_steps - 1, and of all steps after it.
        pct_start: the part of the steps in which the rate rises, in [0, 1).
        div_factor: the first rate is max_value / div_factor.
        final_div_factor: the last rate is the first rate / final_div_factor.

    Raises ValueError for a negative rate, `total_steps` below 1, `pct_start` outside [0, 1) or
    a factor that isn't positive.  Smith and Topin, "Super-convergence: very fast training of
    neural networks using large learning rates", 2018.

    >>> import torch
    >>> from funcnets import optim
    >>> schedule = optim.one_cycle(1.0, total_steps=10)
    >>> [round(float(schedule(torch.tensor(step))), 2) for step in (0, 2, 9)]
    [0.04, 1.0, 0.0]
    """
    check_rate(max_value=max_value)
    check_steps(total_steps=total_steps)
    check("pct_start", pct_start, lambda value: 0 <= value < 1, "a number in [0, 1)")
    for name, factor in {"div_factor": div_factor, "final_div_factor": final_div_factor}.items():
        check(name, factor, lambda value: 0 < value < math.inf, "a finite number above 0")
    first = max_value / div_factor
    last = first / final_div_factor
    top = pct_start * total_steps - 1

    def schedule(step: Tensor) -> Tensor:
        up = _half_cosine(first, max_value, _progress(step, 0, top))
        down = _half_cosine(max_value, last, _progress(step, top, total_steps - 1))
        return torch.where(_as_count(step) < top, up, down)

    return schedule


def _progress(step: Tensor, first: float, last: float) -> Tensor:
    # In float64, so that the rate doesn't depend on the dtype of the parameters.
    # The maximum avoids a division by 0 where the interval is empty.
    return ((_as_count(step) - first) / max(last - first, 1e-9)).clamp(0.0, 1.0)


def _as_count(step: Tensor | int) -> Tensor:
    """Return the number of steps as a 0-d float64 tensor."""
    return torch.as_tensor(step).to(torch.float64)


def _half_cosine(start: float | Tensor, end: float | Tensor, progress: Tensor) -> Tensor:
    return end + (start - end) * (1 + torch.cos(math.pi * progress)) / 2
