"""A running average of parameters and statistics beside a training."""

from collections.abc import Callable
from typing import Any, NamedTuple

from funcnets.core import Params, State
from funcnets.optim import Average, AverageState
from funcnets.train import Batch, Measurements, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Measurements]]


class Averaged(NamedTuple):
    """The memory of a training with an average: it stands in the place of `opt_state`."""

    opt_state: Any
    average: AverageState  # of (params, state)


def with_average(train_state: TrainState, average: Average) -> TrainState:
    """The train state that a step of `averaged` takes: parameters and statistics are averaged."""
    values = (train_state.params, train_state.state)
    return train_state._replace(opt_state=Averaged(train_state.opt_state, average.init(values)))


def averaged(step: Step, average: Average) -> Step:
    """`step`, a training step, which also averages parameters and statistics after the update.

        average = optim.exponential_moving_average(0.999)
        step = transforms.averaged(train.make_train_step(net, optimizer), average)
        train_state = transforms.with_average(train.create(net, optimizer, key, x), average)
        ...
        params, state = transforms.averages(train_state)  # to be evaluated

    Raises TypeError, from the step, for a train state that has no average.
    """

    def averaging(train_state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        memory = _memory(train_state)
        after, measured = step(train_state._replace(opt_state=memory.opt_state), batch)
        moved = average.update((after.params, after.state), memory.average)
        return after._replace(opt_state=Averaged(after.opt_state, moved)), measured

    return averaging


def averages(train_state: TrainState) -> tuple[Params, State]:
    """The averaged parameters and statistics, in float32 or wider.

    Raises TypeError for a train state that has no average.
    """
    return _memory(train_state).average.average


def _memory(train_state: TrainState) -> Averaged:
    if not isinstance(train_state.opt_state, Averaged):
        raise TypeError(
            "opt_state has no average in it: begin with transforms.with_average(train_state, "
            "average), and train with transforms.averaged(step, average)"
        )
    return train_state.opt_state
