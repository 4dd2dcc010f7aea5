"""Moving averages of parameters and statistics, for evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets._validate import check
from funcnets.optim.transformations import step_zero


class AverageState(NamedTuple):
    """A moving average, which can be read at any time."""

    step: Tensor  # int64, 0-d: values averaged so far
    average: Any  # like the values, in float32 or wider


class Average(NamedTuple):
    """A rule that averages the values of a tree as they change; both functions are pure.

    Attributes:
        init: `init(values) -> AverageState`, before the first update.
        update: `update(values, average_state) -> AverageState`, with the new values included.
    """

    init: Callable[[Any], AverageState]
    update: Callable[[Any, AverageState], AverageState]


def exponential_moving_average(decay: float, *, debias: bool = False) -> Average:
    """average = decay · average + (1 - decay) · values, in float32 or wider.

    The average starts at the values that `init` is given.  With `debias` the initial values have
    no weight, whatever they are: after t updates the weight of a value is
    (1 - decay) · decay^age / (1 - decay^t), the bias correction of Adam (Kingma and Ba, 2015,
    section 3).

    Raises ValueError for a decay outside [0, 1).  Polyak and Juditsky, "Acceleration of stochastic
    approximation by averaging", 1992; as in Szegedy et al., 2016, section 8.

    >>> import torch
    >>> from funcnets import optim
    >>> average = optim.exponential_moving_average(0.75)
    >>> average_state = average.init({"bias": torch.tensor([0.0])})
    >>> average.update({"bias": torch.tensor([4.0])}, average_state).average
    {'bias': tensor([1.])}
    """
    check("decay", decay, lambda value: 0 <= value < 1, "a number in [0, 1)")

    def init(values: Any) -> AverageState:
        # A copy, so that the values may be donated and the average kept, or the other way round.
        return AverageState(
            step_zero(values), tree.map(lambda leaf: _widened(leaf).clone(), values)
        )

    def update(values: Any, state: AverageState) -> AverageState:
        step = state.step + 1
        weight = torch.full_like(step, 1 - decay, dtype=torch.float64)
        if debias:
            weight = weight / (1 - decay ** step.to(torch.float64))

        def moved(value: Tensor, average: Tensor) -> Tensor:
            wide = _widened(value)
            result = torch.lerp(average, wide, weight.to(average.dtype))
            # The first value replaces the initial one: 0 · inf would be NaN.
            return torch.where(step == 1, wide, result) if debias else result

        return AverageState(step, tree.map(moved, values, state.average))

    return Average(init, update)


def _widened(leaf: Tensor) -> Tensor:
    # In bfloat16 an average of decay 0.999 would never move.
    return leaf.to(torch.promote_types(leaf.dtype, torch.float32))
