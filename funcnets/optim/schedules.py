"""Learning rates as functions of the step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from funcnets._validate import check, check_non_negative, check_rate, check_steps

Schedule = Callable[[Tensor], Tensor]
"""The learning rate (0-d, float64) at a step (0-d, int64), counted from 0."""


def constant(value: float | Tensor) -> Schedule:
    """The rate `value` at every step.  Raises ValueError for a negative one."""
    check_rate(value=value)
    return lambda step: torch.ones((), dtype=torch.float64, device=step.device) * value


def step_decay(value: float | Tensor, every: int, factor: float) -> Schedule:
    """value · factor^⌊step / every⌋, as torch's `StepLR`.  Raises ValueError if out of range."""
    check_rate(value=value)
    check_steps(every=every)
    check_non_negative(factor=factor)
    return lambda step: value * factor ** (step // every).to(torch.float64)


def linear(value: float | Tensor, total_steps: int, end: float = 0.0) -> Schedule:
    """From `value` at step 0 in a straight line to `end` at `total_steps`, and `end` after it.

    Raises ValueError for a negative rate or `total_steps` below 1.  As torch's `LinearLR`.
    """
    check_rate(value=value, end=end)
    check_steps(total_steps=total_steps)

    def schedule(step: Tensor) -> Tensor:
        progress = _progress(step, 0, total_steps)
        return value * (1 - progress) + end * progress

    return schedule


def cosine(value: float | Tensor, total_steps: int, end: float = 0.0) -> Schedule:
    """From `value` at step 0 in half a cosine to `end` at `total_steps`, and `end` after it.

    Raises ValueError for a negative rate or `total_steps` below 1.  As torch's
    `CosineAnnealingLR`; Loshchilov and Hutter, "SGDR", 2017, equation 5, one period.
    """
    check_rate(value=value, end=end)
    check_steps(total_steps=total_steps)
    return lambda step: _half_cosine(value, end, _progress(step, 0, total_steps))


def warmup(steps: int, schedule: Schedule) -> Schedule:
    """`schedule`, started `steps` steps later; before it, a straight climb to its first rate.

    Step t < steps has schedule(0) · (t + 1) / (steps + 1), so no step has the rate 0.
    `warmup(500, linear(0.1, total_steps - 500))` ends at `total_steps`.

    Raises ValueError if `steps` is negative.
    """
    check("steps", steps, lambda value: value >= 0 and value == int(value), "0 or more steps")

    def warmed(step: Tensor) -> Tensor:
        climb = ((step + 1).to(torch.float64) / (steps + 1)).clamp(max=1.0)
        return schedule((step - steps).clamp(min=0)) * climb

    return warmed


def one_cycle(
    max_value: float | Tensor,
    total_steps: int,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Half a cosine up to `max_value`, half a cosine down, as torch's `OneCycleLR`.

    The first rate is max_value / div_factor, the last, at step total_steps - 1 and after it,
    that / final_div_factor; the top is at step pct_start · total_steps - 1.

    Raises ValueError for a negative rate, `total_steps` below 1, `pct_start` outside [0, 1) or
    a factor that isn't positive.  Smith and Topin, "Super-convergence", 2018.
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
        return torch.where(step < top, up, down)

    return schedule


def _progress(step: Tensor, first: float, last: float) -> Tensor:
    # float64, as a rate has to be the same number whatever dtype the parameters have.
    # The floor keeps an interval of no length (or less) from dividing by 0.
    return ((step.to(torch.float64) - first) / max(last - first, 1e-9)).clamp(0.0, 1.0)


def _half_cosine(start: float | Tensor, end: float | Tensor, progress: Tensor) -> Tensor:
    return end + (start - end) * (1 + torch.cos(math.pi * progress)) / 2
