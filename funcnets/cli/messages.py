"""Messages about a training, for every reporter."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch

from funcnets import tree
from funcnets.cli.preparation import Setup
from funcnets.cli.recipe_options import RECIPE_FIELDS
from funcnets.cli.run_data import shown
from funcnets.cli.terminal import sparkline
from funcnets.cli.training import Outcome
from funcnets.runs import Config, EpochRow, MemberRow, best_row, evaluated, networks, steps_done


class TrainingMessages:
    """Texts about the training of one network.

    Attributes:
        epochs: epochs of the whole training.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.epochs = setup, setup.config.epochs

    def opening(self) -> Iterator[str]:
        """Yield what is trained, on what, and where the run is kept."""
        config = self.setup.config
        yield from self.data()
        yield (
            f"training {config.network} on {config.device}{self.processes()}: {self.sizes()}, "
            f"seed {config.seed}"
        )
        yield f"learning rate {config.learning_rate:g} ({config.schedule})"
        yield f"precision {config.precision}; {self.bits()}"
        yield from recipe(config)
        yield f"run directory {self.setup.directory.path}"
        yield from self.setup.notes

    def data(self) -> Iterator[str]:
        """Yield what the data are, and how to get more."""
        source, *_ = self.setup.dataset.source.split("; ")  # then, how a library gets more
        yield source
        names = self.setup.config.class_names
        yield f"{len(names)} classes: {shown(names)}"
        if self.setup.config.data == "bundled":
            yield "for the full set, add --download, or give its directory by --data DIR"

    def bits(self) -> str:
        """Return whether the same training gives the same bits each time."""
        config, threads = self.setup.config, torch.get_num_threads()
        if config.device == "cpu":
            return f"the same bits each time with {threads} thread{'s' * (threads > 1)}"
        if self.setup.processes.axis.size > 1:
            return "several GPUs may give other bits each time"
        if config.deterministic:
            return "the same bits each time (--deterministic)"
        return "other bits each time; for the same ones add --deterministic"

    def processes(self) -> str:
        """Return how many processes train together; nothing for one alone."""
        size = self.setup.processes.axis.size
        return f" in {size} processes" if size > 1 else ""

    def sizes(self) -> str:
        """Return how many epochs of which batches."""
        config = self.setup.config
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"{epochs}, batches of {config.batch_size}, side {config.side}"

    def averages(self, progress: Any) -> str:
        """Return the averages of the epoch so far."""
        running = progress.running
        return f"loss {running.loss:.3f}, accuracy {running.accuracy:.3f}"

    def members(self, progress: Any) -> Sequence[str]:
        """Return no lines: there is one training."""
        return ()

    def epoch(self, rows: Sequence[Any]) -> str:
        """Return the measurements of an epoch."""
        row: EpochRow = rows[0]
        return (
            f"{self.place(row.epoch)}  loss {row.train_loss:.3f}  accuracy: train "
            f"{row.train_accuracy:.3f}, {'val' if self.setup.config.validation else 'test'} "
            f"{row.watched_accuracy:.3f}"
            f"{speed(row.examples_per_second)}"
        )

    def place(self, epoch: int) -> str:
        """Return which epoch of how many it is, always as wide."""
        return f"epoch {epoch:{len(str(self.epochs))}}/{self.epochs}"

    def closing(self, outcome: Outcome) -> Iterator[str]:
        """Yield how it ended, and how to go on."""
        path = self.setup.directory.path
        if outcome.interrupted:
            yield from self.interrupted(outcome)
            return
        for name, values in shown_parameters(outcome).items():
            yield f"{name} learned: {' '.join(f'{value:.2f}' for value in values)}"
        best = best_row(outcome.rows)
        assert best
        last: EpochRow = outcome.rows[-1]
        if self.setup.config.validation:
            if last.epoch < self.epochs:
                yield f"stopped early, after epoch {last.epoch} of {self.epochs}"
            yield (
                f"best in epoch {best.epoch}: validation accuracy {best.watched_accuracy:.4f}; its "
                "checkpoint is tested"
            )
            last = best
        yield f"{self.finished(outcome)}: test accuracy {last.test_accuracy or 0:.4f}"
        if not self.setup.config.validation:
            yield "test images were watched in each epoch; --validation 0.1 spares them to the end"
        yield from course(outcome.rows)
        yield f"to evaluate it: funcnets eval {path}"

    def interrupted(self, outcome: Outcome, command: str = "train") -> Iterator[str]:
        """Yield what a signal left, and how to go on."""
        assert outcome.interrupted
        step = outcome.saved_step
        saved = "with nothing new to save" if step is None else f"saved at step {step}"
        yield f"interrupted by {outcome.interrupted.name}, {saved}"
        size = self.setup.processes.axis.size
        more = f" --processes {size}" if size > 1 else ""
        yield f"to go on: funcnets {command} --run-dir {self.setup.directory.path} --resume{more}"

    def finished(self, outcome: Outcome) -> str:
        """Return how long it took."""
        return (
            f"finished in {outcome.seconds:.0f} s, {outcome.compile_seconds:.0f} s of it compiling"
        )

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """Return how it ended, for JSON."""
        config = outcome.setup.config
        return {
            "event": "interrupted" if outcome.interrupted else "finished",
            "run": str(self.setup.directory.path),
            "network": config.network,
            "precision": config.precision,
            "processes": self.setup.processes.axis.size,
            **self.measured(outcome),
            "compile_seconds": round(outcome.compile_seconds, 3),
            "seconds": round(outcome.seconds, 3),
        }

    def measured(self, outcome: Outcome) -> dict[str, Any]:
        """Return the last measurements, for JSON."""
        last = outcome.rows[-1]._asdict() if outcome.rows else {}
        if self.setup.config.validation and (best := best_row(outcome.rows)):
            chosen = ("test_loss", "test_accuracy", "validation_loss", "validation_accuracy")
            last |= {name: getattr(best, name) for name in chosen} | {"best_epoch": best.epoch}
        return last | {"step": steps_done(outcome.train_state)} | shown_parameters(outcome)


def recipe(config: Config) -> Iterator[str]:
    """Yield what the recipe has beside plain SGD; nothing for that."""
    usual = {field.name: field.default for field in fields(Config)}
    chosen = {name: getattr(config, name) for name in RECIPE_FIELDS}
    parts = [
        f"{name.replace('_', ' ')}{'' if value is True else f' {value}'}"
        for name, value in chosen.items()
        if value != usual[name]
    ]
    if parts:
        yield ", ".join(parts)
    if config.weight_decay:
        yield "biases and parameters of batch norm have no weight decay"


def course(rows: Sequence[EpochRow | MemberRow]) -> Iterator[str]:
    """Yield a line with the accuracy of all epochs, if they are several.

    It is the accuracy on the images that are watched; of a sweep, that of the whole ensemble.
    """
    whole = [row for row in rows if isinstance(row, EpochRow) or row.is_of_all]
    values = [row.watched_accuracy for row in whole]
    if len(values) > 1:
        yield f"accuracy by epoch: {sparkline(values)}  {min(values):.3f} to {max(values):.3f}"


def speed(examples_per_second: float | None) -> str:
    """Return the end of an epoch's line; nothing if the speed isn't known."""
    return f"  {examples_per_second:,.0f} examples/s" if examples_per_second else ""


def shown_parameters(outcome: Outcome) -> dict[str, list[float]]:
    """Return the parameters that the network's entry in the index asks to show, by name."""
    named = tree.flatten_named(evaluated(outcome.train_state)[0])
    shown = networks.shown_parameters(outcome.setup.config.network)
    return {name: named[name].tolist() for name in shown}
