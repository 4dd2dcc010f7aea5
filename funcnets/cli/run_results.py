"""Results of a run: its curves, its predictions of the test images, and its mistakes."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcnets import metrics, summary, tree
from funcnets.cli import preparation
from funcnets.cli.confusion import LogitEvaluation
from funcnets.cli.preparation import Setup
from funcnets.cli.reporters import Reporter
from funcnets.cli.sweep import MemberEvaluation
from funcnets.core import Params, State
from funcnets.plots import Curve, Mistake
from funcnets.runs import Config, EpochRow, MemberRow, RunDirectory, RunError, SweepConfig, recipe
from funcnets.transforms import ensemble

POINTS_OF_A_SCHEDULE = 200


@dataclass(frozen=True)
class Predictions:
    """Predictions of the test images.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        logits: (N, K); of a sweep, those of the ensemble of all members.
        names: name of each class.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    names: Sequence[str]

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image, (N,)."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        """The fraction of images that is classified correctly."""
        return float((self.predicted == self.labels).double().mean())

    @property
    def confusion(self) -> Tensor:
        """Number of images (K, K) by true class, the row, and by predicted class."""
        return metrics.confusion(self.logits, self.labels)

    def worst(self, count: int) -> list[Mistake]:
        """Return mistakes, those first to whose true class the network gave the least."""
        probabilities = self.logits.double().softmax(1)
        of_truth = probabilities.gather(1, self.labels[:, None])[:, 0]
        wrong = (self.predicted != self.labels).nonzero()[:, 0]
        order = wrong[of_truth[wrong].argsort(stable=True)][:count]
        return [
            Mistake(
                self.images[index],
                self.names[int(self.labels[index])],
                self.names[int(self.predicted[index])],
                float(probabilities[index].max()),
                index,
            )
            for index in order.tolist()
        ]


def open_run(path: Path, given: Mapping[str, Any]) -> Setup:
    """Return a run as `preparation.open_run` does, and print its warnings."""
    setup = preparation.open_run(path, given)
    for text in setup.warnings:
        Reporter().warn(text)
    return setup


def predict(setup: Setup) -> Predictions:
    """Return a run's predictions of its test images, by its checkpoint."""
    config, images = setup.config, setup.dataset.test_images
    parts = (config, setup.net, setup.dataset)
    if isinstance(config, SweepConfig):
        members = MemberEvaluation(*parts)(setup.train_state)
        finite = members.isfinite().all(2).all(1)
        found = ensemble.combine_logits(members[finite] if finite.any() else members)
    else:
        found = LogitEvaluation(*parts)(setup.train_state)
    labels = setup.dataset.test_labels.cpu()
    return Predictions(images.cpu(), labels, found.float().cpu(), config.class_names)


def network_values(setup: Setup) -> tuple[Params, State]:
    """Return parameters and statistics of a run's network; of a sweep, its first finite member."""
    params, state = recipe.evaluated(setup.train_state)
    if not isinstance(setup.config, SweepConfig):
        return params, state
    leaves = [leaf for leaf in tree.leaves(params) if leaf.is_floating_point()]
    members = range(len(setup.config.members))
    finite = (m for m in members if all(bool(leaf[m].isfinite().all()) for leaf in leaves))
    member = next(finite, 0)
    chosen: tuple[Params, State] = tree.map(lambda leaf: leaf[member], (params, state))
    return chosen


def parts_of(setup: Setup) -> list[summary.Row]:
    """Return the rows of the network's parts in order of execution, for one image."""
    config = setup.config
    return summary.summarize(setup.net, (1, config.channels, config.side, config.side))[:-1]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run directory: its last part, or its path if others have that too."""
    ends = [path.resolve().name for path in paths]
    return [
        end if ends.count(end) == 1 else str(path) for end, path in zip(ends, paths, strict=True)
    ]


def curves_of(directory: RunDirectory, label: str) -> list[Curve]:
    """Return the curve of a run, or for a sweep one of each learning rate.

    Raises RunError if there is no run, or no epoch of it is done.
    """
    config = directory.read_config()
    if isinstance(config, SweepConfig):
        members = [row for row in directory.read_rows(MemberRow) if row.seed is not None]
        _check_measured(directory, members)
        return [_curve_of_rate(config, members, rate, label) for rate in config.rates]
    rows = directory.read_rows(EpochRow)
    _check_measured(directory, rows)
    watched = "validation" if config.validation else "test"
    curve = Curve(
        label,
        [row.epoch for row in rows],
        [finite(row.train_loss) for row in rows],
        [row.train_accuracy for row in rows],
        [getattr(row, f"{watched}_loss") for row in rows],
        [getattr(row, f"{watched}_accuracy") for row in rows],
        watched,
        _rates(config, config.learning_rate, rows[-1]),
    )
    return [curve]


def finite(number: float) -> float | None:
    """Return a number, or None if it isn't finite."""
    return number if math.isfinite(number) else None


def _check_measured(directory: RunDirectory, rows: Sequence[Any]) -> None:
    if not rows:
        raise RunError(f"{directory.path}: no epoch is done yet; go on with it by --resume")


def _curve_of_rate(
    config: SweepConfig, rows: Sequence[MemberRow], rate: float, label: str
) -> Curve:
    """Return the medians over the seeds of a learning rate that did not diverge."""
    of_rate = [row for row in rows if row.learning_rate == rate]
    epochs = sorted({row.epoch for row in of_rate})
    good = [[row for row in of_rate if row.epoch == e and not row.diverged] for e in epochs]

    def medians(field: str) -> list[float | None]:
        known = [[v for row in each if (v := getattr(row, field)) is not None] for each in good]
        return [statistics.median(values) if values else None for values in known]

    accuracies = [[row.test_accuracy for row in each] or [math.nan] for each in good]
    lowest, highest = ([of(each) for each in accuracies] for of in (min, max))
    return Curve(
        f"{label}, rate {rate:g}",
        epochs,
        medians("train_loss"),
        medians("train_accuracy"),
        medians("test_loss"),
        medians("test_accuracy"),
        rates=_rates(config, rate, of_rate[-1]),
        spread=None if config.seeds == 1 else (lowest, highest),
    )


def _rates(
    config: Config, rate: float, last: EpochRow | MemberRow
) -> tuple[tuple[float, float], ...]:
    """Return pairs of epochs and learning rate, from the first step to the last one done."""
    batches = last.step // last.epoch
    course = recipe.schedule(config, batches * config.epochs, rate)
    stride = max(1, last.step // POINTS_OF_A_SCHEDULE)
    steps = torch.arange(0, last.step, stride)
    rates = course(steps) if callable(course) else torch.full(steps.shape, float(course))
    return tuple(zip((steps / batches).tolist(), rates.tolist(), strict=True))


def accuracies_by_rate(
    config: SweepConfig, rows: Sequence[MemberRow]
) -> tuple[dict[float, list[float | None]], dict[float, float]]:
    """Return test accuracies of the last epoch: of each rate its seeds', and its ensemble's.

    That of a member that diverged is None.
    """
    last = [row for row in rows if row.epoch == rows[-1].epoch]
    seeds = {
        rate: [None if row.diverged else row.test_accuracy for row in _members(last, rate)]
        for rate in config.rates
    }
    ensembles = {
        row.learning_rate: row.test_accuracy
        for row in last
        if row.seed is None and row.learning_rate is not None and not row.diverged
    }
    return seeds, ensembles


def _members(rows: Sequence[MemberRow], rate: float) -> Iterator[MemberRow]:
    return (row for row in rows if row.seed is not None and row.learning_rate == rate)
