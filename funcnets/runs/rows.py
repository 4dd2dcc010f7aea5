"""Rows of a run's metrics: what was measured in each epoch."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar


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

    @property
    def is_of_all(self) -> bool:
        """True for the ensemble of all members."""
        return self.seed is None and self.learning_rate is None


Row = TypeVar("Row", EpochRow, MemberRow)


def best_step(rows: Sequence[EpochRow | MemberRow]) -> int | None:
    """Return the step after which test accuracy was highest, the first one; None without rows.

    For a sweep it is the accuracy of the ensemble of all members.
    """
    whole = [row for row in rows if isinstance(row, EpochRow) or row.is_of_all]
    return max(whole, key=lambda row: row.test_accuracy).step if whole else None
