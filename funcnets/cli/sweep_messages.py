"""Messages about a sweep: medians over its members, and at the end a table of them."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from funcnets.cli.messages import TrainingMessages, course, recipe, speed
from funcnets.cli.sweep import best_rate, last_epoch
from funcnets.cli.training import Outcome
from funcnets.metrics import Running
from funcnets.runs import MemberRow, SweepConfig, steps_done

MOST_MEMBER_LINES = 16  # below a progress bar
BAR_WIDTH = 20


class SweepMessages(TrainingMessages):
    """Texts about a sweep."""

    def opening(self) -> Iterator[str]:
        """Yield what is trained, on what, and where the run is kept."""
        config = self.setup.config
        assert isinstance(config, SweepConfig)
        yield from self.data()
        yield (
            f"training {len(config.members)} {config.network} together on {config.device}: "
            f"{self.sizes()}"
        )
        seeds = "seed 0" if config.seeds == 1 else f"seeds 0 to {config.seeds - 1}"
        rates = ", ".join(f"{rate:g}" for rate in config.rates)
        yield f"{seeds} with each learning rate: {rates} ({config.schedule})"
        yield f"precision {config.precision}; {self.bits()}"
        yield from recipe(config)
        yield f"run directory {self.setup.directory.path}"
        yield from self.setup.notes

    def averages(self, progress: Any) -> str:
        """Return the medians over the members of the epoch's averages so far."""
        loss = statistics.median(running.loss for running in progress.running)
        accuracy = statistics.median(running.accuracy for running in progress.running)
        return f"medians: loss {loss:.3f}, accuracy {accuracy:.3f}"

    def members(self, progress: Any) -> Sequence[str]:
        """Return a line about each member's epoch so far, or of many members about each rate."""
        config = self.setup.config
        assert isinstance(config, SweepConfig)
        width = max(len(f"{rate:g}") for rate in config.rates)
        named = list(zip(config.members, progress.running, strict=True))
        if len(named) <= MOST_MEMBER_LINES:
            return [
                f"  rate {rate:<{width}g}  seed {seed:<3}{_course(running)}"
                for (rate, seed), running in named
            ]
        return [
            f"  rate {rate:<{width}g}  "
            + _courses([running for (other, _), running in named if other == rate])
            for rate in config.rates[:MOST_MEMBER_LINES]
        ]

    def epoch(self, rows: Sequence[Any]) -> str:
        """Return the measurements of an epoch."""
        members = [row for row in rows if row.seed is not None]
        diverged = sum(row.diverged for row in members)
        tested = [row.test_accuracy for row in members if not row.diverged] or [0.0]
        return (
            f"{self.place(rows[0].epoch)}  test {min(tested):.3f} to {max(tested):.3f}, "
            f"ensemble {rows[-1].test_accuracy:.3f}"
            + (f", {diverged} diverged" if diverged else "")
            + speed(rows[0].examples_per_second)
        )

    def closing(self, outcome: Outcome) -> Iterator[str]:
        """Yield the table of the last epoch, and how it ended."""
        rows = last_epoch(outcome.rows)
        yield from table(rows)
        if rows:
            rate, median = best_rate(rows)
            yield f"best rate by median test accuracy over seeds: {rate:g} ({median:.4f})"
        if outcome.interrupted:
            yield from self.interrupted(outcome, "sweep")
            return
        path = self.setup.directory.path
        yield f"{self.finished(outcome)}; saved in {path}"
        yield from course(outcome.rows)
        yield f"to evaluate it: funcnets eval {path}"

    def measured(self, outcome: Outcome) -> dict[str, Any]:
        """Return the last measurements, for JSON."""
        rows = last_epoch(outcome.rows)
        known = {"step": steps_done(outcome.train_state)}
        if not rows:
            return known
        rate, median = best_rate(rows)
        best = {"best_rate": rate, "best_median_test_accuracy": median}
        return known | best | {"ensemble_test_accuracy": rows[-1].test_accuracy}


def _course(running: Running) -> str:
    """Return loss and accuracy of a member, and a bar as long as its accuracy."""
    if not math.isfinite(running.loss):
        return "diverged"
    filled = round(running.accuracy * BAR_WIDTH)
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    return f"loss {running.loss:6.3f}  accuracy {running.accuracy:.3f}  {bar}"


def _courses(members: Sequence[Running]) -> str:
    """Return accuracies of several members."""
    good = [running.accuracy for running in members if math.isfinite(running.loss)]
    diverged = f"{len(members) - len(good)} of {len(members)} diverged"
    if not good:
        return diverged
    return (
        f"{len(members)} seeds  accuracy {min(good):.3f} to {max(good):.3f}, "
        f"median {statistics.median(good):.3f}"
        + (f"  {diverged}" if len(good) < len(members) else "")
    )


def table(rows: Sequence[MemberRow]) -> Iterator[str]:
    """Yield a line for each member, for the ensemble of each rate, and for that of all members."""
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
