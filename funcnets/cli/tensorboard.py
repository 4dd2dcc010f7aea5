"""TensorBoard: rows of a run as scalars, in event files under `RUN/tensorboard`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from funcnets import _extras
from funcnets.runs import EpochRow, MemberRow, RunError, StepRow

DIRECTORY = "tensorboard"  # in that of a run
EXTRA = "tensorboard"
EVENT_FILES = "events.out.tfevents.*"
PLACES = ("step", "epoch", "seed", "base_rate", "diverged")  # fields that are no scalars


def check_installed() -> None:
    """Raise MissingExtraError unless TensorBoard is installed."""
    _extras.require("tensorboard", EXTRA, "--tensorboard")


class EventFiles:
    """Event files of a run: `epoch/test_loss`, `step/loss` and the like, by the number of steps.

    Those of a training are in `path`; each member and ensemble of a sweep has a directory in it.
    A training that goes on from step `start` keeps the events up to it, once each.

    Raises RunError where a file can't be written, here or later.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self._writers: dict[str, Any] = {}
        self._guarded(self._keep, start)

    def write(self, rows: Sequence[EpochRow | MemberRow | StepRow]) -> None:
        """Add the numbers of rows, and write them to disk."""
        self._guarded(self._write, rows)

    def _guarded(self, function: Any, argument: Any) -> None:
        try:
            function(argument)
        except OSError as error:
            raise RunError(
                f"{self.path}: can't be written ({error.strerror}); check its permissions and the "
                "room on its disk, or go on without --tensorboard"
            ) from error

    def _write(self, rows: Sequence[EpochRow | MemberRow | StepRow]) -> None:
        for row in rows:
            kind = "step" if isinstance(row, StepRow) else "epoch"
            self._writer(_part(row)).add_event(_event(row, kind))
        for writer in self._writers.values():
            writer.flush()

    def _writer(self, part: str) -> Any:
        module = "tensorboard.summary.writer.event_file_writer"
        if part not in self._writers:
            writer = _extras.require(module, EXTRA, "--tensorboard").EventFileWriter
            self._writers[part] = writer(str(self.path / part))
        return self._writers[part]

    def _keep(self, start: int) -> None:
        """Write the events of earlier starts anew, up to a step, and remove their files."""
        files = sorted(self.path.rglob(EVENT_FILES))
        known: set[tuple[str, int, str]] = set()
        for file in files:
            part = str(file.parent.relative_to(self.path))
            for event in _read(file):
                new = {(part, event.step, value.tag) for value in event.summary.value} - known
                if new and event.step <= start:
                    known |= new
                    self._writer(part).add_event(event)
        for writer in self._writers.values():
            writer.flush()
        for file in files:
            file.unlink()


def _event(row: EpochRow | MemberRow | StepRow, kind: str) -> Any:
    import time

    event = _extras.require("tensorboard.compat.proto.event_pb2", EXTRA, "--tensorboard").Event
    summary = _extras.require("tensorboard.compat.proto.summary_pb2", EXTRA, "--tensorboard")
    values = [
        summary.Summary.Value(tag=f"{kind}/{name}", simple_value=value)
        for name, value in row._asdict().items()
        if value is not None and name not in PLACES
    ]
    summed = summary.Summary(value=values)
    return event(wall_time=time.time(), step=row.step, summary=summed)


def _part(row: EpochRow | MemberRow | StepRow) -> str:
    """Return the directory of a row's events: that of the run itself, or one of a sweep's parts."""
    if isinstance(row, EpochRow) or (isinstance(row, StepRow) and row.seed is None):
        return "."
    base = row.base_rate if isinstance(row, StepRow) else row.learning_rate
    rate = "all rates" if base is None else f"rate {base:g}"
    return f"{rate}, {'ensemble' if row.seed is None else f'seed {row.seed}'}"


def _read(file: Path) -> Iterator[Any]:
    """Yield the events of a file, up to one that was cut off."""
    module = "tensorboard.backend.event_processing.event_file_loader"
    loader = _extras.require(module, EXTRA, "--tensorboard").LegacyEventFileLoader
    yield from loader(str(file)).Load()
