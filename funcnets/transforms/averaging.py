"""Moving average of parameters and running statistics during a training."""

from collections.abc import Callable
from typing import Any, NamedTuple

from funcnets.core import Params, State
from funcnets.optim import Average, AverageState
from funcnets.train import Batch, Measurements, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Measurements]]


class Averaged(NamedTuple):
    """Optimizer state together with the average: it takes the place of `opt_state`."""

    opt_state: Any
    average: AverageState  # average of (params, state)


def with_average(train_state: TrainState, average: Average) -> TrainState:
    """Return the train state with an average in it, as a step of `averaged` takes it."""
    values = (train_state.params, train_state.state)
    return train_state._replace(opt_state=Averaged(train_state.opt_state, average.init(values)))


def averaged(step: Step, average: Average) -> Step:
    """Return a training step that also averages parameters and running statistics.

    It takes the average after each update of `step`.

    Raises TypeError, from the step, for a train state without an average.

    >>> import torch
    >>> from funcnets import layers, optim, random, train, transforms
    >>> net, optimizer, x = layers.linear(2), optim.sgd(0.1), torch.ones(4, 3)
    >>> average = optim.exponential_moving_average(0.999)
    >>> step = transforms.averaged(train.make_train_step(net, optimizer), average)
    >>> train_state = train.create(net, optimizer, random.key(0), x)
    >>> train_state = transforms.with_average(train_state, average)
    >>> train_state, measured = step(train_state, (x, torch.zeros(4, dtype=torch.int64)))
    >>> params, state = transforms.averages(train_state)  # for evaluation
    """

    def averaging(train_state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        before = _get_averaged(train_state)
        after, measured = step(train_state._replace(opt_state=before.opt_state), batch)
        updated = average.update((after.params, after.state), before.average)
        return after._replace(opt_state=Averaged(after.opt_state, updated)), measured

    return averaging


def averages(train_state: TrainState) -> tuple[Params, State]:
    """Return the averaged parameters and running statistics, in float32 or wider.

    Raises TypeError for a train state without an average.
    """
    averages: tuple[Params, State] = _get_averaged(train_state).average.average
    return averages


def _get_averaged(train_state: TrainState) -> Averaged:
    if not isinstance(train_state.opt_state, Averaged):
        raise TypeError(
            "opt_state has no average in it: begin with transforms.with_average(train_state, "
            "average), and train with transforms.averaged(step, average)"
        )
    return train_state.opt_state
