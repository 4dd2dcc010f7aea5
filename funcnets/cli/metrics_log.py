"""Log of a training beside its table of epochs: rows of single steps, and TensorBoard's events."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from funcnets.cli.compiled_step import Speed, Taken
from funcnets.cli.evaluation import finite
from funcnets.cli.failures import failing_to_write
from funcnets.cli.tensorboard import DIRECTORY, EventFiles
from funcnets.runs import EpochRow, MemberRow, RunDirectory, StepRow

ONE_NETWORK: tuple[tuple[float | None, int | None], ...] = ((None, None),)


class _Unread(NamedTuple):
    """A step whose measurements are on the device, with those of the other steps of its call."""

    step: int
    epoch: int
    measured: dict[str, Tensor]  # each 0-d, (steps of the call,) or (members,)
    place: int  # of the step in these
    speed: Speed


class MetricsLog:
    """Rows of every so many steps, and events of these and of epochs.

    Rows of steps are written when the loop has read its own measurements, so that the log never
    waits for the device.

    Args:
        directory: the run that is written to.
        every: the number of steps from row to row; None for no rows.
        learning_rates: gives the learning rates of a step, which is counted from 1: that of the
            network, or one for each member.
        members: learning rate and seed of each member of a sweep.

    Its methods raise TrainingError where something can't be written.
    """

    def __init__(
        self,
        directory: RunDirectory,
        every: int | None,
        learning_rates: Callable[[int], Sequence[float]],
        members: Sequence[tuple[float | None, int | None]] = ONE_NETWORK,
    ) -> None:
        self.directory, self.every = directory, every
        self.learning_rates, self.members = learning_rates, members
        self._events: EventFiles | None = None
        self._speed = Speed()
        self._unread: list[_Unread] = []

    def open_events(self, start: int) -> str:
        """Begin TensorBoard's files, from step `start` on, and return how to watch them."""
        path = self.directory.path / DIRECTORY
        with failing_to_write():
            self._events = EventFiles(path, start)
        return f"to watch it: tensorboard --logdir {path}"

    def epoch(self, rows: Sequence[EpochRow | MemberRow]) -> None:
        """Write the events of an epoch."""
        if self._events is not None:
            with failing_to_write():
                self._events.write(rows)

    def step(self, progress: Any, measured: dict[str, Tensor], taken: Taken | None) -> None:
        """Note a call of steps: what they measured and took, None for one that compiled."""
        if self.every is None:
            return
        self._speed.add(taken)
        first = progress.step - measured["loss"].numel() // len(self.members) + 1
        steps = [step for step in range(first, progress.step + 1) if step % self.every == 0]
        for step in steps:
            unread = _Unread(step, progress.epoch + 1, measured, step - first, self._speed)
            self._unread.append(unread)
        if steps:
            self._speed = Speed()
        if not progress.averages.unread:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait.  Reading them waits for the device."""
        rows = [row for unread in self._unread for row in self._rows(unread)]
        self._unread = []
        if not rows:
            return
        with failing_to_write():
            self.directory.add_step_rows(rows)
            if self._events is not None:
                self._events.write(rows)

    def _rows(self, unread: _Unread) -> Iterator[StepRow]:
        """Yield the row of a step, or one for each member of a sweep."""
        speed, rate, members = unread.speed, unread.speed.rate, len(self.members)
        learning_rates = self.learning_rates(unread.step)
        for i, (base_rate, seed) in enumerate(self.members):
            place = unread.place * members + i
            numbers = {
                name: finite(float(unread.measured[name].reshape(-1)[place]))
                for name in ("loss", "gradient_norm")
            }
            yield StepRow(
                step=unread.step,
                epoch=unread.epoch,
                **numbers,
                learning_rate=learning_rates[i],
                examples_per_second=rate and round(rate * members, 1),
                data_seconds=speed.mean(speed.data_seconds),
                step_seconds=speed.mean(speed.step_seconds),
                base_rate=base_rate,
                seed=seed,
            )
