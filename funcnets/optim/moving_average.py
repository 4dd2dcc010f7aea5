"""Running averages of what is trained, for evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets._validate import check
from funcnets.optim.transformations import first_step


class AverageState(NamedTuple):
    """A running average, which can be read at any time."""

    step: Tensor  # int64, (): values averaged so far
    average: Any  # like the values, in float32 or wider


class Average(NamedTuple):
    """A rule that averages the values of a tree as they change; both functions are pure.

    Attributes:
        init: `init(values) -> AverageState`, before the first update.
        update: `update(values, average_state) -> AverageState`, with the new values in it.
    """

    init: Callable[[Any], AverageState]
    update: Callable[[Any, AverageState], AverageState]


def exponential_moving_average(decay: float, *, debias: bool = False) -> Average:
    """average = decay · average + (1 - decay) · values, in float32 or wider.

    It starts from the values that `init` is given.  With `debias` these do not count: after t
    updates a value's weight is (1 - decay) · decay^age / (1 - decay^t), the bias correction of
    Adam (Kingma and Ba, 2015, section 3), which weighs the updates alone.

    Raises ValueError for a decay outside [0, 1).  Polyak and Juditsky, "Acceleration of stochastic
    approximation by averaging", 1992; as in Szegedy et al., 2016, section 8.
    """
    check("decay", decay, lambda value: 0 <= value < 1, "a number in [0, 1)")

    def init(values: Any) -> AverageState:
        # A copy, so that the memory of one may be donated without the other's.
        return AverageState(
            first_step(values), tree.map(lambda leaf: _precise(leaf).clone(), values)
        )

    def update(values: Any, state: AverageState) -> AverageState:
        step = state.step + 1
        weight = torch.full_like(step, 1 - decay, dtype=torch.float64)
        if debias:
            weight = weight / (1 - decay ** step.to(torch.float64))

        def moved(value: Tensor, average: Tensor) -> Tensor:
            return torch.lerp(average, _precise(value), weight.to(average.dtype))

        return AverageState(step, tree.map(moved, values, state.average))

    return Average(init, update)


def _precise(leaf: Tensor) -> Tensor:
    # In bfloat16 an average of decay 0.999 would never move.
    return leaf.to(torch.promote_types(leaf.dtype, torch.float32))
