"""Reporters show how a training goes: a progress bar, plain lines, JSON lines, or warnings only."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from funcnets.cli import terminal

REFRESH_SECONDS = 0.25  # of the averages in a progress bar


class Messages(Protocol):
    """Texts about a training, a line each.

    Attributes:
        epochs: epochs of the whole training.
    """

    epochs: int

    def opening(self) -> Iterator[str]:
        """Yield what is trained, on what, and where the run is kept."""

    def averages(self, progress: Any) -> str:
        """Return the averages of the epoch so far."""

    def members(self, progress: Any) -> Sequence[str]:
        """Return a line about each member that is trained, for a sweep; none for one training."""

    def epoch(self, rows: Sequence[Any]) -> str:
        """Return the measurements of an epoch."""

    def closing(self, outcome: Any) -> Iterator[str]:
        """Yield how it ended, and how to go on."""

    def result(self, outcome: Any) -> dict[str, Any]:
        """Return how it ended, for JSON."""


class Reporter:
    """Shows warnings alone, on standard error; its subclasses show more.

    Attributes:
        unheard: True once nobody reads what is printed any more.
    """

    unheard = False
    _is_noted = False

    def warn(self, text: str) -> None:
        """Print a warning on standard error."""
        self.print(terminal.warning_line(text), sys.stderr)

    def print(self, text: str, stream: TextIO) -> None:
        """Print a line; that it can't be printed is only noted."""
        if error := terminal.write(f"{text}\n", stream):
            self.note(error)

    def note(self, error: OSError) -> None:
        """Note why something can't be printed: a broken pipe stops a training, others don't."""
        if isinstance(error, BrokenPipeError):
            self.unheard = True
        elif not self._is_noted:
            self._is_noted = True
            self.warn(f"what is printed can't be written ({error.strerror}): going on without it")

    def line(self, text: str) -> None:
        """Do nothing with a line that is good to know."""

    @contextmanager
    def compiling(self, name: str) -> Iterator[None]:
        """Do nothing around the compilation of what is called `name`."""
        yield

    def advance(self, progress: Any, examples_per_second: float | None) -> None:
        """Do nothing after a step."""

    def epoch(self, rows: Sequence[Any]) -> None:
        """Do nothing after an epoch with these measurements."""


class PlainLines(Reporter):
    """Prints a line for each event, for logs and pipes."""

    def __init__(self, messages: Messages) -> None:
        self.messages = messages

    def __enter__(self) -> Self:
        for line in self.messages.opening():
            self.line(line)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def line(self, text: str) -> None:
        """Print a line."""
        self.print(text, sys.stdout)

    @contextmanager
    def compiling(self, name: str) -> Iterator[None]:
        """Print how long a compilation took, with the first run."""
        started = time.perf_counter()
        yield
        self.line(f"compiled {name} in {time.perf_counter() - started:.1f} s")

    def epoch(self, rows: Sequence[Any]) -> None:
        """Print the measurements of an epoch."""
        self.line(self.messages.epoch(rows))

    def finish(self, outcome: Any) -> None:
        """Print how the training ended, and how to go on."""
        for line in self.messages.closing(outcome):
            self.line(line)


class Silence(PlainLines):
    """Shows nothing, for all processes but the first of those that train together."""

    def print(self, text: str, stream: TextIO) -> None:
        """Do nothing."""


class _BarAndLines(Bar):
    """A bar with lines below it."""

    lines: Sequence[str] = ()

    def get_renderable(self) -> RenderableType:
        """Return the bar and the lines."""
        below = (Text(line, no_wrap=True, overflow="crop") for line in self.lines)
        return Group(super().get_renderable(), *below)


class ProgressBar(PlainLines):
    """Shows a bar that the steps of all epochs fill, below a line for each epoch.

    Below it are lines about the members of a sweep.
    """

    _refreshed = -math.inf
    _averages = ""

    def __init__(self, messages: Messages) -> None:
        super().__init__(messages)
        self.bar = _BarAndLines(
            SpinnerColumn("line"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            TextColumn("{task.fields[averages]}"),
            TimeRemainingColumn(),
            console=Console(
                highlight=False, file=cast(TextIO, terminal.Unfailing(sys.stdout, self.note))
            ),
            transient=True,
        )
        self.task = self.bar.add_task("starting", total=None, start=False, averages="")

    def __enter__(self) -> Self:
        super().__enter__()
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def compiling(self, name: str) -> Iterator[None]:
        """Show what is compiled while it is."""
        self.bar.update(self.task, description=f"compiling {name}")
        with super().compiling(name):
            yield

    def advance(self, progress: Any, examples_per_second: float | None) -> None:
        """Move the bar by a step.

        The averages are read when they are refreshed, as reading waits for the device.
        """
        is_last, now = progress.batch == progress.batches, time.monotonic()
        if is_last or now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed, self._averages = now, self.messages.averages(progress)
            self.bar.lines = self.messages.members(progress)
        done = progress.epoch * progress.batches + progress.batch
        if self.bar.tasks[0].total is None:
            # The remaining time is estimated from here on, without the compilation.
            total = self.messages.epochs * progress.batches
            self.bar.update(self.task, total=total, completed=done)
            self.bar.start_task(self.task)
        speed = f"  {examples_per_second:,.0f}/s" if examples_per_second else ""
        self.bar.update(
            self.task,
            completed=done,
            description=f"epoch {progress.epoch + 1}/{self.messages.epochs}",
            averages=self._averages + speed,
        )


class JsonLines(PlainLines):
    """Prints JSON on standard output, an object for each row and one at the end.

    Lines for people go to standard error.
    """

    def line(self, text: str) -> None:
        """Print a line on standard error."""
        self.print(text, sys.stderr)

    def epoch(self, rows: Sequence[Any]) -> None:
        """Print the measurements of an epoch."""
        for row in rows:
            self.print(json.dumps({"event": "epoch", **row._asdict()}), sys.stdout)

    def finish(self, outcome: Any) -> None:
        """Print how the training ended."""
        self.print(json.dumps(self.messages.result(outcome)), sys.stdout)
