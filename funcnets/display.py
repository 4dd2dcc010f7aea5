"""What the command line shows while it trains: a progress bar, plain lines, or JSON lines."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from funcnets.loop import Outcome
from funcnets.run import Row
from funcnets.session import Session
from funcnets.train import Progress


class Warnings:
    """Warnings alone, on stderr."""

    def warn(self, text: str) -> None:
        """Print a warning on stderr."""
        print(f"funcnets: warning: {' '.join(text.split())}", file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """Nothing is said of what is only good to know."""

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Nothing is said of what is compiled."""
        yield

    def advance(self, progress: Progress, examples_per_second: float | None) -> None:
        """Nothing is said of a step."""

    def epoch(self, row: Row) -> None:
        """Nothing is said of an epoch."""


class PlainLines(Warnings):
    """A line for each thing that happened, for logs and pipes."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> "PlainLines":
        for line in _opening(self.session):
            self.line(line)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def line(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Say how long `what` took to compile, its first run included."""
        started = time.perf_counter()
        yield
        self.line(f"compiled {what} in {time.perf_counter() - started:.1f} s")

    def epoch(self, row: Row) -> None:
        """Print the measurements of an epoch."""
        self.line(_epoch_line(row, self.session.config.epochs))

    def finish(self, outcome: Outcome) -> None:
        """Print how it ended, and how to go on."""
        for line in _closing(outcome):
            self.line(line)


class ProgressBar(PlainLines):
    """A bar that fills with the steps of all epochs, and above it a line for each epoch."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
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

    def advance(self, progress: Progress, examples_per_second: float | None) -> None:
        """Move the bar by a step."""
        running, speed = progress.running, examples_per_second
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
            measured=f"loss {running.loss:.3f}  accuracy {running.accuracy:.3f}"
            + (f"  {speed:,.0f} examples/s" if speed else ""),
        )


class JsonLines(PlainLines):
    """An object a line on stdout for each epoch, and one at the end; all else goes to stderr."""

    def line(self, text: str) -> None:
        """Print a line for people, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def epoch(self, row: Row) -> None:
        """Print the measurements of an epoch."""
        print(json.dumps({"event": "epoch", **row._asdict()}), flush=True)

    def finish(self, outcome: Outcome) -> None:
        """Print how it ended."""
        last = outcome.rows[-1]._asdict() if outcome.rows else {}
        summary = {
            "event": "interrupted" if outcome.interrupted else "finished",
            "run": str(outcome.session.directory.path),
            "network": outcome.session.config.network,
            "precision": outcome.session.config.precision,
            **last,
            "step": int(outcome.train_state.step),
            "compile_seconds": round(outcome.compile_seconds, 3),
            "seconds": round(outcome.seconds, 3),
            **_learned(outcome),
        }
        print(json.dumps(summary), flush=True)


def _opening(session: Session) -> Iterator[str]:
    config = session.config
    yield session.dataset.source
    yield (
        f"training {config.network} on {config.device}: {config.epochs} epochs, batches of "
        f"{config.batch_size}, learning rate {config.learning_rate:g} ({config.schedule}), "
        f"side {config.side}, precision {config.precision}, seed {config.seed}"
    )
    yield f"run directory {session.directory.path}"
    yield from session.notes


def _epoch_line(row: Row, epochs: int) -> str:
    speed = f"{row.examples_per_second:,.0f}" if row.examples_per_second else "–"
    return (
        f"epoch {row.epoch:{len(str(epochs))}}/{epochs}  train loss {row.train_loss:.3f}, accuracy "
        f"{row.train_accuracy:.3f}  test accuracy {row.test_accuracy:.3f}  {speed} examples/s"
    )


def _closing(outcome: Outcome) -> Iterator[str]:
    path = outcome.session.directory.path
    if outcome.interrupted:
        step = int(outcome.train_state.step)
        yield f"interrupted by {outcome.interrupted.name}, saved at step {step}"
        yield f"to go on: funcnets train --run {path} --resume"
        return
    for name, values in _learned(outcome).items():
        yield f"{name} learned: {' '.join(f'{value:.2f}' for value in values)}"
    yield (
        f"finished in {outcome.seconds:.0f} s, {outcome.compile_seconds:.0f} s of it compiling: "
        f"test accuracy {outcome.rows[-1].test_accuracy:.4f}"
    )
    yield f"to evaluate it: funcnets eval {path}"


def _learned(outcome: Outcome) -> dict[str, Any]:
    """What the scratch batch norm has learned in its first layer, a number a channel."""
    if outcome.session.config.network != "lenet_bn_scratch":
        return {}
    leaves = outcome.train_state.params["bn1"]
    return {f"bn1.{name}": leaf.tolist() for name, leaf in leaves.items()}
