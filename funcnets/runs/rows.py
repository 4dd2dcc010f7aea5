"""Rows of a run's metrics: what was measured in each epoch."""

from typing import NamedTuple


class EpochRow(NamedTuple):
    """Measurements of an epoch: averages over it in training, and over all test images."""

    epoch: int  # counted from 1
    step: int  # steps done at its end
    train_loss: float
    train_accuracy: float
    test_loss: float | None  # None where it isn't finite
    test_accuracy: float
    examples_per_second: float | None  # None where every step was the first of its shape
    seconds: float  # since the epoch began, or was resumed, with compilation and evaluation


class MemberRow(NamedTuple):
    """Measurements of an epoch of a sweep's member, or of an ensemble of its finite members."""

    epoch: int  # counted from 1
    step: int  # steps done at its end
    test_loss: float | None  # None where it isn't finite
    test_accuracy: float
    diverged: bool  # of an ensemble: all of its members
    examples_per_second: float | None  # of all members together
    seconds: float
    learning_rate: float | None  # None for the ensemble of all rates
    seed: int | None = None  # None for an ensemble
    train_loss: float | None = None  # None for an ensemble, or where it isn't finite
    train_accuracy: float | None = None
