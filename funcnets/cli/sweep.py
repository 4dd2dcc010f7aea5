"""The sweep of the command line: seeds × learning rates, trained together as one ensemble."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import data, losses, metrics, random, tree
from funcnets.cli import configuration
from funcnets.cli.compiled_step import Evaluation
from funcnets.cli.fit_check import example, fitting, try_batches
from funcnets.cli.preparation import Session, find_data, load
from funcnets.cli.training import Work, save
from funcnets.core import Layer, Params, State
from funcnets.runs import directory as run_directory
from funcnets.runs.config import Config, UsageError
from funcnets.train import Batch, Prepare, TrainState
from funcnets.transforms import ensemble


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """All that decides what a sweep computes; `seed` and `learning_rate` are the first member's."""

    seeds: int  # 0, 1, … each with every rate
    rates: tuple[float, ...]

    @property
    def label(self) -> str:
        """What tells runs of one network and recipe apart, in the names of their directories."""
        return "sweep"

    @property
    def members(self) -> list[tuple[float, int]]:
        """Rate and seed of each member."""
        return [(rate, seed) for rate in self.rates for seed in range(self.seeds)]


class MemberRow(NamedTuple):
    """What is measured in an epoch of a member, or of an ensemble of those that didn't diverge."""

    epoch: int  # counted from 1
    step: int  # steps done at its end
    test_loss: float | None  # None where it is no finite number
    test_accuracy: float
    diverged: bool  # of an ensemble: all of its members
    examples_per_second: float | None  # of all members together
    seconds: float
    learning_rate: float | None  # None for the ensemble of all rates
    seed: int | None = None  # None for an ensemble
    train_loss: float | None = None  # None for an ensemble, or where it is no finite number
    train_accuracy: float | None = None


def configure(given: Mapping[str, Any], seeds: int, rates: Sequence[float]) -> SweepConfig:
    """The configuration of a sweep over `seeds` seeds and these rates; else as `run.configure`.

    Raises UsageError for a name that isn't known or a value out of range.
    """
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}; expected 1 or more")
    if not rates or len({*rates}) < len(rates):
        raise UsageError(f"--lr is {', '.join(map(str, rates))}; expected different rates")
    configs = [configuration.configure({**given, "learning_rate": rate}) for rate in rates]
    return SweepConfig(**asdict(configs[0]), seeds=seeds, rates=tuple(rates))


def begin(
    given: Mapping[str, Any], seeds: int, rates: Sequence[float], path: Path | None = None
) -> Session:
    """A new sweep in a new run directory.

    Raises UsageError, DataError or LayerError where it can't be trained like this.
    """
    if not rates:
        rates = [configuration.configure(given).learning_rate]
    config = configure(given, seeds, rates)
    config = replace(config, data=find_data(given.get("data")))
    dataset, net, make = load(config)
    optimizer = ensemble.rated(make, config.learning_rate)
    keys = torch.stack([random.key(seed, config.device) for _, seed in config.members])
    each = torch.tensor([rate for rate, _ in config.members], dtype=torch.float64)
    with fitting(net, config, dataset):
        image = example(config.side, config.device)
        train_state = ensemble.create(net, optimizer, keys, image, each.to(config.device))
        try_batches(net, tree.map(lambda leaf: leaf[0], train_state), config, dataset)
    directory = run_directory.create(path, config)
    return Session(config, directory, dataset, net, optimizer, train_state, running=())


class MemberEvaluation(Evaluation):
    """The logits of all members for all test images, (M, N, K), by a step of one shape."""

    def function(self, net: Layer, prepare: Prepare) -> Callable[..., Any]:
        """What is done with the parameters, the statistics and a batch."""

        def step(params: Params, state: State, batch: Batch) -> Tensor:
            return ensemble.member_logits(net, params, state, prepare(batch[0]))

        return step

    def __call__(self, train_state: TrainState) -> Tensor:
        """The logits."""
        images, labels = self.batch
        everything = torch.arange(len(labels), device=labels.device)
        parts = [
            self.step(train_state.params, train_state.state, (images[part], labels[part]))
            for part in data.batches(everything, self.size)
        ]
        return torch.cat(parts, 1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(
    session: Session,
    progress: ensemble.Progress,
    logits: Tensor,
    rate: float | None,
    seconds: float,
) -> list[MemberRow]:
    """Rows of the members in order, then of the ensemble of each rate, and of that of them all."""
    config, labels = session.config, session.dataset.test_labels
    assert isinstance(config, SweepConfig)
    finite = logits.isfinite().all(2).all(1).tolist()
    good = [
        ok and math.isfinite(running.loss_sum)
        for ok, running in zip(finite, progress.running, strict=True)
    ]

    def row(tested: Tensor, diverged: bool, **who: Any) -> MemberRow:
        return MemberRow(
            epoch=progress.epoch + 1,
            step=int(progress.train_state.step[0]),
            test_loss=_finite(float(losses.cross_entropy(tested, labels))),
            test_accuracy=float(metrics.accuracy(tested, labels)),
            diverged=diverged,
            examples_per_second=rate and round(rate * len(good), 1),
            seconds=round(seconds, 3),
            **who,
        )

    def together(learning_rate: float | None) -> MemberRow:
        rates = [member_rate for member_rate, _ in config.members]
        chosen = [i for i, other in enumerate(rates) if learning_rate in (None, other)]
        used = [i for i in chosen if good[i]]
        tested = ensemble.combine_logits(logits[used or chosen])
        return row(tested, not used, learning_rate=learning_rate)

    members = zip(config.members, progress.running, logits, good, strict=True)
    alone = [
        row(
            tested,
            not ok,
            seed=seed,
            learning_rate=member_rate,
            train_loss=_finite(running.loss),
            train_accuracy=running.accuracy,
        )
        for (member_rate, seed), running, tested, ok in members
    ]
    return [*alone, *map(together, config.rates), together(None)]


def last_epoch(rows: Sequence[MemberRow]) -> list[MemberRow]:
    """The rows of the last epoch that is done."""
    return [row for row in rows if row.epoch == rows[-1].epoch]


def best_rate(rows: Sequence[MemberRow]) -> tuple[float, float]:
    """The rate with the best median test accuracy over its seeds, and that median.

    A member that diverged counts as one that gets nothing right.
    """
    tested: dict[float, list[float]] = {}
    for row in rows:
        if row.seed is not None and row.learning_rate is not None:
            accuracy = 0.0 if row.diverged else row.test_accuracy
            tested.setdefault(row.learning_rate, []).append(accuracy)
    medians = {rate: statistics.median(values) for rate, values in tested.items()}
    best = max(medians, key=lambda rate: medians[rate])
    return best, medians[best]


def _save(session: Session, train_state: TrainState, running: Any) -> None:
    """Write a checkpoint of the stacked state, also of members that diverged."""
    step = int(train_state.step[0])
    epoch, batch = divmod(step, session.batches)
    save(session, step, train_state, {"epoch": epoch, "batch": batch})


SWEEP = Work(ensemble.jit_step, MemberEvaluation, ensemble.fit, _rows, _save)
