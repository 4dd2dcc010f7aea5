"""Rows of a run's metrics: what was measured in each epoch."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar


class EpochRow(NamedTuple):
    """Measurements of an epoch: averages over it in training, and over all test images.

    With a validation part the test images are measured in one row, that of the best epoch.
    """

    epoch: int  # counted from 1
    step: int  # steps done at its end
    train_loss: float
    train_accuracy: float
    test_loss: float | None  # None where it isn't finite, or not measured
    test_accuracy: float | None  # None where it isn't measured
    examples_per_second: float | None  # None where every step was the first of its shape
    seconds: float  # since the epoch began, or was resumed, with compilation and evaluation
    validation_loss: float | None = None  # None without a validation part, or not finite
    validation_accuracy: float | None = None
    learning_rate: float | None = None  # of its last step
    gradient_norm: float | None = None  # of its last step; None where it isn't finite
    data_seconds: float | None = None  # of `seconds`, to gather batches
    step_seconds: float | None = None  # in steps, without the first of each shape
    evaluation_seconds: float | None = None

    @property
    def watched_accuracy(self) -> float:
        """The accuracy by which the best epoch is chosen, of validation if there is a part."""
        known = (self.validation_accuracy, self.test_accuracy)
        return next((accuracy for accuracy in known if accuracy is not None), 0.0)


class StepRow(NamedTuple):
    """Measurements of one step, and its times: means over the steps since the row before.

    In a sweep each member has a row, and times and speed are those of all members together.
    Times are the host's, without steps that compile; on a GPU, which runs up to 8 steps behind,
    they are right for rows that are at least so far apart.
    """

    step: int  # counted from 1, through the whole training
    epoch: int  # counted from 1
    loss: float | None  # of its batch, before the update; None where it isn't finite
    learning_rate: float
    gradient_norm: float | None  # of all gradients, before clipping; None where it isn't finite
    examples_per_second: float | None  # None where every step was the first of its shape
    data_seconds: float | None  # of a step, until its batch is gathered
    step_seconds: float | None  # of a step, from then on
    base_rate: float | None = None  # of a sweep's member: its learning rate before the schedule
    seed: int | None = None  # of a sweep's member


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
    gradient_norm: float | None = None  # of its last step; None where it isn't finite
    data_seconds: float | None = None  # of `seconds`, to gather batches
    step_seconds: float | None = None  # in steps of all members, without the first of each shape
    evaluation_seconds: float | None = None

    @property
    def watched_accuracy(self) -> float:
        """The accuracy by which the best epoch is chosen."""
        return self.test_accuracy

    @property
    def is_of_all(self) -> bool:
        """True for the ensemble of all members."""
        return self.seed is None and self.learning_rate is None


Row = TypeVar("Row", EpochRow, MemberRow)


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of the best epoch, the first one; None without rows.

    It has the highest accuracy on the validation part, or without one on the test images.  For a
    sweep it is the accuracy of the ensemble of all members.
    """
    whole = [row for row in rows if isinstance(row, EpochRow) or row.is_of_all]
    return max(whole, key=lambda row: row.watched_accuracy) if whole else None


def best_step(rows: Sequence[Row]) -> int | None:
    """Return the step at the end of the best epoch, see `best_row`; None without rows."""
    best = best_row(rows)
    return best.step if best else None


def is_stopped_early(rows: Sequence[EpochRow], patience: int | None) -> bool:
    """True if the last `patience` epochs were no better than the best one before."""
    best = best_row(rows)
    return bool(best and patience and rows[-1].epoch - best.epoch >= patience)
