"""What the command line shows while it trains: a progress bar, plain lines, or JSON lines."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from funcnets.cli import terminal
from funcnets.cli.messages import Words
from funcnets.cli.preparation import Session
from funcnets.cli.training import Outcome


class Warnings:
    """Warnings alone, on stderr."""

    unheard = False

    def warn(self, text: str) -> None:
        """Print a warning on stderr."""
        self.print(f"funcnets: warning: {' '.join(text.split())}", sys.stderr)

    def print(self, text: str, stream: TextIO) -> None:
        """Print a line; where nobody reads the stream any more, that is only noted."""
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:
            terminal.silence(stream)
            self.unheard = True

    def line(self, text: str) -> None:
        """Nothing is said of what is only good to know."""

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Nothing is said of what is compiled."""
        yield

    def advance(self, progress: Any, examples_per_second: float | None) -> None:
        """Nothing is said of a step."""

    def epoch(self, rows: Sequence[Any]) -> None:
        """Nothing is said of an epoch."""


class PlainLines(Warnings):
    """A line for each thing that happened, for logs and pipes."""

    def __init__(self, session: Session, words: Words) -> None:
        self.session, self.words = session, words

    def __enter__(self) -> "PlainLines":
        for line in self.words.opening(self.session):
            self.line(line)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def line(self, text: str) -> None:
        """Print a line."""
        self.print(text, sys.stdout)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Say how long `what` took to compile, its first run included."""
        started = time.perf_counter()
        yield
        self.line(f"compiled {what} in {time.perf_counter() - started:.1f} s")

    def epoch(self, rows: Sequence[Any]) -> None:
        """Print the measurements of an epoch."""
        self.line(self.words.epoch(self.session, rows))

    def finish(self, outcome: Outcome) -> None:
        """Print how it ended, and how to go on."""
        for line in self.words.closing(outcome):
            self.line(line)


class ProgressBar(PlainLines):
    """A bar that fills with the steps of all epochs, and above it a line for each epoch."""

    def __init__(self, session: Session, words: Words) -> None:
        super().__init__(session, words)
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measured]}"),
            TimeRemainingColumn(),
            console=Console(highlight=False),
            transient=True,
        )
        self.task = self.bar.add_task("starting", total=None, start=False, measured="")

    def __enter__(self) -> "ProgressBar":
        super().__enter__()
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Say what is compiled while it is."""
        self.bar.update(self.task, description=f"compiling {what} …")
        with super().compiling(what):
            yield

    def advance(self, progress: Any, examples_per_second: float | None) -> None:
        """Move the bar by a step."""
        speed = examples_per_second
        done = progress.epoch * progress.batches + progress.batch
        total = self.session.config.epochs * progress.batches
        if self.bar.tasks[0].total is None:
            # From here, and not from the compilation, the time that is left is reckoned.
            self.bar.update(self.task, total=total, completed=done)
            self.bar.start_task(self.task)
        self.bar.update(
            self.task,
            completed=done,
            description=f"epoch {progress.epoch + 1}/{self.session.config.epochs}",
            measured=self.words.measured(progress)
            + (f"  {speed:,.0f} examples/s" if speed else ""),
        )


class JsonLines(PlainLines):
    """An object a line on stdout for each epoch, and one at the end; all else goes to stderr."""

    def line(self, text: str) -> None:
        """Print a line for people, on stderr."""
        self.print(text, sys.stderr)

    def epoch(self, rows: Sequence[Any]) -> None:
        """Print the measurements of an epoch."""
        for row in rows:
            self.print(json.dumps({"event": "epoch", **row._asdict()}), sys.stdout)

    def finish(self, outcome: Outcome) -> None:
        """Print how it ended."""
        summary = {
            "event": "interrupted" if outcome.interrupted else "finished",
            "run": str(outcome.session.directory.path),
            "network": outcome.session.config.network,
            "precision": outcome.session.config.precision,
            **self.words.result(outcome),
            "compile_seconds": round(outcome.compile_seconds, 3),
            "seconds": round(outcome.seconds, 3),
        }
        self.print(json.dumps(summary), sys.stdout)
