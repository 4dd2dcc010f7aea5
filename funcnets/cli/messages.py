"""What the command line says of a training and of a sweep, however it is shown."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from funcnets.cli.preparation import Session
from funcnets.cli.sweep import MemberRow, SweepConfig, best_rate, last_epoch
from funcnets.cli.training import Outcome


class Words:
    """What is said of the training of one network."""

    command = "train"

    def opening(self, session: Session) -> Iterator[str]:
        """What is trained, on what, and where the run is kept."""
        config = session.config
        yield session.dataset.source
        yield (
            f"training {config.network} on {config.device}: {_epochs(session)}, batches of "
            f"{config.batch_size}, learning rate {config.learning_rate:g} ({config.schedule}), "
            f"side {config.side}, precision {config.precision}, seed {config.seed}"
        )
        yield f"run directory {session.directory.path}"
        yield from session.notes

    def measured(self, progress: Any) -> str:
        """The averages of the epoch so far."""
        running = progress.running
        return f"loss {running.loss:.3f}  accuracy {running.accuracy:.3f}"

    def epoch(self, session: Session, rows: Sequence[Any]) -> str:
        """The measurements of an epoch."""
        (row,) = rows
        return (
            f"{_place(session, row)}  train loss {row.train_loss:.3f}, accuracy "
            f"{row.train_accuracy:.3f}  test accuracy {row.test_accuracy:.3f}  {_speed(row)}"
        )

    def closing(self, outcome: Outcome) -> Iterator[str]:
        """How it ended, and how to go on."""
        path = outcome.session.directory.path
        if outcome.interrupted:
            step = int(outcome.train_state.step)
            yield f"interrupted by {outcome.interrupted.name}, saved at step {step}"
            yield f"to go on: funcnets train --run {path} --resume"
            return
        for name, values in _learned(outcome).items():
            yield f"{name} learned: {' '.join(f'{value:.2f}' for value in values)}"
        yield f"{_finished(outcome)}: test accuracy {outcome.rows[-1].test_accuracy:.4f}"
        yield f"to evaluate it: funcnets eval {path}"

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """What there is to know at the end, as JSON."""
        last = outcome.rows[-1]._asdict() if outcome.rows else {}
        return last | {"step": int(outcome.train_state.step)} | _learned(outcome)


def _epochs(session: Session) -> str:
    epochs = session.config.epochs
    return f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"


def _place(session: Session, row: Any) -> str:
    epochs = session.config.epochs
    return f"epoch {row.epoch:{len(str(epochs))}}/{epochs}"


def _speed(row: Any) -> str:
    speed = f"{row.examples_per_second:,.0f}" if row.examples_per_second else "–"
    return f"{speed} examples/s"


def _finished(outcome: Outcome) -> str:
    return f"finished in {outcome.seconds:.0f} s, {outcome.compile_seconds:.0f} s of it compiling"


def _learned(outcome: Outcome) -> dict[str, Any]:
    """What the scratch batch norm has learned in its first layer, a number a channel."""
    if outcome.session.config.network != "lenet_bn_scratch":
        return {}
    leaves = outcome.train_state.params["bn1"]
    return {f"bn1.{name}": leaf.tolist() for name, leaf in leaves.items()}


class SweepWords(Words):
    """What is said of a sweep: medians over its members, and at the end a table of them."""

    def opening(self, session: Session) -> Iterator[str]:
        """What is trained, on what, and where the run is kept."""
        config = session.config
        assert isinstance(config, SweepConfig)
        yield session.dataset.source
        yield (
            f"training {config.seeds * len(config.rates)} {config.network} together on "
            f"{config.device}: {config.seeds} seeds × learning rates "
            f"{', '.join(f'{rate:g}' for rate in config.rates)} ({config.schedule}), "
            f"{_epochs(session)}, batches of {config.batch_size}, side {config.side}"
        )
        yield f"run directory {session.directory.path}"

    def measured(self, progress: Any) -> str:
        """The medians over the members of the epoch so far."""
        loss = statistics.median(one.loss for one in progress.running)
        accuracy = statistics.median(one.accuracy for one in progress.running)
        return f"median loss {loss:.3f}  accuracy {accuracy:.3f}"

    def epoch(self, session: Session, rows: Sequence[Any]) -> str:
        """The measurements of an epoch."""
        members = [row for row in rows if row.seed is not None]
        diverged = sum(row.diverged for row in members)
        tested = [row.test_accuracy for row in members if not row.diverged] or [0.0]
        return (
            f"{_place(session, rows[0])}  test accuracy {min(tested):.3f} to {max(tested):.3f}, "
            f"ensemble {rows[-1].test_accuracy:.3f}"
            + (f", {diverged} diverged" if diverged else "")
            + f"  {_speed(rows[0])}"
        )

    def closing(self, outcome: Outcome) -> Iterator[str]:
        """The table of the last epoch, and how it ended."""
        rows = last_epoch(outcome.rows)
        yield from _table(rows)
        if rows:
            rate, median = best_rate(rows)
            yield f"best rate by median test accuracy over seeds: {rate:g} ({median:.4f})"
        path, stopped = outcome.session.directory.path, outcome.interrupted
        if stopped:
            yield f"interrupted by {stopped.name}; saved in {path}, but no sweep can be resumed"
        else:
            yield f"{_finished(outcome)}; saved in {path}"

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """What there is to know at the end, as JSON."""
        rows = last_epoch(outcome.rows)
        known = {"step": int(outcome.train_state.step[0])}
        if not rows:
            return known
        rate, median = best_rate(rows)
        best = {"best_rate": rate, "best_median_test_accuracy": median}
        return known | best | {"ensemble_test_accuracy": rows[-1].test_accuracy}


def _table(rows: Sequence[MemberRow]) -> Iterator[str]:
    """A line a member, then one for the ensemble of each rate, and one for that of them all."""
    columns = ("seed", "lr", "train loss", "train acc", "test acc")
    if rows:
        yield "".join(f"{column:>12}" for column in columns)
    for row in rows:
        seed = "ensemble" if row.seed is None else str(row.seed)
        rate = "all" if row.learning_rate is None else f"{row.learning_rate:g}"
        numbers = (row.train_loss, row.train_accuracy, row.test_accuracy)
        shown = ["" if number is None else f"{number:.4f}" for number in numbers]
        line = "".join(f"{cell:>12}" for cell in (seed, rate, *shown))
        yield line + ("  diverged" if row.diverged else "")
