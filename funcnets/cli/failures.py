"""Failures of a training, with what could not be written among them."""

from collections.abc import Iterator
from contextlib import contextmanager

from funcnets.checkpoint import CheckpointError
from funcnets.runs import RunError


class TrainingError(RuntimeError):
    """A training failed by itself or by the machine, not by what was asked for."""


@contextmanager
def failing_to_write() -> Iterator[None]:
    """Around code that writes to the run directory: that it can't is a TrainingError."""
    try:
        yield
    except (CheckpointError, RunError) as error:
        raise TrainingError(str(error)) from error
