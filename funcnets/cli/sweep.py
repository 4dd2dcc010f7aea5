"""The sweep of the command line: seeds and learning rates, trained together as one ensemble."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets import data, losses, metrics
from funcnets.cli.evaluation import Evaluation, finite
from funcnets.cli.preparation import Setup
from funcnets.cli.training import EpochTimes, Training
from funcnets.core import Layer, Params, State
from funcnets.metrics import Running
from funcnets.runs import MemberRow, SweepConfig, steps_done
from funcnets.train import Batch, Prepare, TrainState
from funcnets.transforms import ensemble


class MemberEvaluation(Evaluation):
    """Logits of all members for all test images, (M, N, K), by a step of one shape."""

    def function(self, net: Layer, prepare: Prepare) -> Callable[..., Any]:
        """Return the step: of parameters, statistics and a batch."""

        def step(params: Params, state: State, batch: Batch) -> Tensor:
            return ensemble.member_logits(net, params, state, prepare(batch[0]))

        return step

    def __call__(self, train_state: TrainState) -> Tensor:
        """Return the logits."""
        images, labels = self.batch
        everything = torch.arange(len(labels), device=labels.device)
        parts = [
            self.step(train_state.params, train_state.state, (images[part], labels[part]))
            for part in data.batches(everything, self.size)
        ]
        return torch.cat(parts, 1)


class Sweep(Training):
    """The training of a network for every seed and learning rate, in one step."""

    @property
    def config(self) -> SweepConfig:
        """The configuration of the sweep."""
        assert isinstance(self.setup.config, SweepConfig)
        return self.setup.config

    @property
    def members(self) -> Sequence[tuple[float, int]]:
        """Learning rate and seed of each member."""
        return self.config.members

    def jit(self, step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compile the training step of a network as the step of all members."""
        return ensemble.jit_step(step, **options)

    def evaluation(self) -> Evaluation:
        """Return what gives the members' logits after an epoch."""
        return MemberEvaluation(self.config, self.setup.net, self.setup.watched)

    def fit(self, step: Callable[..., Any], **options: Any) -> Iterator[Any]:
        """Yield the progress of all members after each step, as `ensemble.fit` does."""
        return ensemble.fit(step, self.train_state, running=self.running or (), **options)

    def epoch_rows(
        self, progress: Any, tested: Any, times: EpochTimes, measured: Mapping[str, Any]
    ) -> Sequence[MemberRow]:
        """Return rows of the members, of the ensemble of each rate, and of that of all members.

        `tested` are the members' logits.  Members that diverged are left out of ensembles.
        """
        rate, norms = times.examples_per_second, measured.get("gradient_norm")
        speed = rate and round(rate * len(self.members), 1)
        return measured_rows(
            self.config,
            tested,
            self.setup.watched.test_labels,
            progress.running,
            [None] * len(self.members) if norms is None else [*map(finite, norms.tolist())],
            epoch=progress.epoch + 1,
            step=steps_done(progress.train_state),
            **times._replace(examples_per_second=speed)._asdict(),
        )

    def running_fields(self) -> Any:
        """Return the averages of each member over the epoch so far, for JSON."""
        return [
            running._replace(loss_sum=finite(running.loss_sum))._asdict()
            for running in self.running or ()
        ]

    def check_train_state(self, step: int) -> None:
        """Accept members that diverged: they are saved like the others."""


def measured_rows(
    config: SweepConfig,
    tested: Tensor,
    labels: Tensor,
    running: Sequence[Running | None],
    gradient_norms: Sequence[float | None],
    **common: Any,
) -> list[MemberRow]:
    """Return rows of the members, of the ensemble of each rate, and of that of all members.

    Args:
        config: the configuration of the sweep.
        tested: the logits of each member for the test images, (M, N, K).
        labels: their labels, (N,).
        running: the averages of each member over the epoch; None where they aren't known.
        gradient_norms: that of each member's last step; None where it isn't known.
        common: the other fields of the rows.
    """
    are_finite = tested.isfinite().all(2).all(1).tolist()
    good = [
        is_finite and (averages is None or math.isfinite(averages.loss_sum))
        for is_finite, averages in zip(are_finite, running, strict=True)
    ]

    def row(logits: Tensor, **fields: Any) -> MemberRow:
        return MemberRow(
            test_loss=finite(float(losses.cross_entropy(logits, labels))),
            test_accuracy=float(metrics.accuracy(logits, labels)),
            **common,
            **fields,
        )

    members = [
        row(
            logits,
            diverged=not is_good,
            learning_rate=learning_rate,
            seed=seed,
            train_loss=averages and finite(averages.loss),
            train_accuracy=averages and averages.accuracy,
            gradient_norm=norm,
        )
        for (learning_rate, seed), averages, norm, logits, is_good in zip(
            config.members, running, gradient_norms, tested, good, strict=True
        )
    ]
    return members + _ensemble_rows(config, tested, good, row)


def _ensemble_rows(
    config: SweepConfig, tested: Tensor, good: Sequence[bool], row: Callable[..., MemberRow]
) -> list[MemberRow]:
    """Return rows of the ensemble of each rate, and of that of all members."""
    rates = [learning_rate for learning_rate, _ in config.members]
    rows = []
    for learning_rate in (*config.rates, None):
        chosen = [i for i, other in enumerate(rates) if learning_rate in (None, other)]
        used = [i for i in chosen if good[i]]
        logits = ensemble.combine_logits(tested[used or chosen])
        rows.append(row(logits, diverged=not used, learning_rate=learning_rate))
    return rows


def evaluate(setup: Setup) -> list[MemberRow]:
    """Return rows of the members and ensembles of a sweep's train state over all test images."""
    assert isinstance(setup.config, SweepConfig)
    tested = MemberEvaluation(setup.config, setup.net, setup.dataset)(setup.train_state)
    step, unknown = steps_done(setup.train_state), [None] * len(setup.config.members)
    return measured_rows(
        setup.config,
        tested,
        setup.dataset.test_labels,
        unknown,
        unknown,
        epoch=step // setup.batches,
        step=step,
        examples_per_second=None,
        seconds=0.0,
    )


def measured_ensemble(setup: Setup, rows: Sequence[MemberRow]) -> dict[str, Any]:
    """Return loss and accuracy of the ensemble of all members, and the rows, for JSON."""
    fields = ("learning_rate", "seed", "diverged", "test_loss", "test_accuracy")
    return {
        "run": str(setup.directory.path),
        "network": setup.config.network,
        "step": rows[-1].step,
        "test_images": len(setup.dataset.test_labels),
        "test_loss": rows[-1].test_loss,
        "test_accuracy": rows[-1].test_accuracy,
        "members": [{name: getattr(row, name) for name in fields} for row in rows],
    }


def last_epoch(rows: Sequence[MemberRow]) -> list[MemberRow]:
    """Return the rows of the last epoch that is done."""
    return [row for row in rows if row.epoch == rows[-1].epoch]


def best_rate(rows: Sequence[MemberRow]) -> tuple[float, float]:
    """Return the rate with the best median test accuracy over its seeds, and that median.

    A member that diverged counts as one with accuracy 0.
    """
    tested: dict[float, list[float]] = {}
    for row in rows:
        if row.seed is not None and row.learning_rate is not None:
            accuracy = 0.0 if row.diverged else row.test_accuracy
            tested.setdefault(row.learning_rate, []).append(accuracy)
    medians = {rate: statistics.median(values) for rate, values in tested.items()}
    best = max(medians, key=lambda rate: medians[rate])
    return best, medians[best]
