"""Confusions of a network by class, its calibration, and its worst mistakes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from funcnets import data, metrics, runs
from funcnets.cli.evaluation import Evaluation
from funcnets.cli.preparation import Setup
from funcnets.cli.sweep import MemberEvaluation
from funcnets.core import Layer, Params, State
from funcnets.runs import SweepConfig
from funcnets.train import Batch, Prepare, TrainState
from funcnets.transforms import ensemble

WORST_MISTAKES = 5
LARGEST_MATRIX = 12  # classes whose counts fit 80 columns


class LogitEvaluation(Evaluation):
    """Logits of all test images, (N, K), by a step of one shape."""

    def function(self, net: Layer, prepare: Prepare) -> Callable[..., Any]:
        """Return the step: of parameters, statistics and a batch."""

        def step(params: Params, state: State, batch: Batch) -> Tensor:
            return net.apply(params, state, prepare(batch[0]))[0]

        return step

    def __call__(self, train_state: TrainState) -> Tensor:
        """Return the logits."""
        params, state = runs.evaluated(train_state)
        images, labels = self.batch
        everything = torch.arange(len(labels), device=labels.device)
        parts = data.batches(everything, self.size)
        return torch.cat([self.step(params, state, (images[i], labels[i])) for i in parts])


class Report(NamedTuple):
    """The predictions of a network for the test images."""

    class_names: tuple[str, ...]
    matrix: list[list[int]]  # rows are true classes, columns predicted ones
    class_accuracies: list[float | None]  # None for a class without test images
    calibration_error: float
    mistakes: list[dict[str, Any]]  # those of which it was surest


def report(setup: Setup) -> Report:
    """Return what the network of a training, or the ensemble of a sweep, confuses."""
    parts = (setup.config, setup.net, setup.dataset)
    labels = setup.dataset.test_labels
    if isinstance(setup.config, SweepConfig):
        logits = ensemble.combine_logits(MemberEvaluation(*parts)(setup.train_state))
    else:
        logits = LogitEvaluation(*parts)(setup.train_state)
    return described(logits.float().softmax(1).cpu(), labels.cpu(), setup.config.class_names)


def described(probabilities: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Report:
    """Return the report on probabilities (N, K) for class numbers (N,)."""
    matrix = metrics.confusion(probabilities, labels)
    accuracies = [
        int(row[number]) / total if (total := int(row.sum())) else None
        for number, row in enumerate(matrix)
    ]
    error = metrics.calibration_error(probabilities, labels)
    surest, predicted = probabilities.max(dim=1)
    wrong = torch.nonzero(predicted != labels).flatten()
    worst = wrong[surest[wrong].argsort(descending=True, stable=True)][:WORST_MISTAKES]
    mistakes = [
        {
            "image": index,
            "class": class_names[int(labels[index])],
            "predicted": class_names[int(predicted[index])],
            "probability": float(surest[index]),
        }
        for index in worst.tolist()
    ]
    return Report(class_names, matrix.tolist(), accuracies, error, mistakes)


def table(found: Report) -> Table:
    """Return a row for each class: its accuracy, and what it was taken for."""
    shown = Table()
    is_small = len(found.class_names) <= LARGEST_MATRIX
    numbers = [str(number) for number in range(len(found.class_names))] if is_small else []
    shown.add_column("class")
    for name in ("accuracy", *numbers):
        shown.add_column(name, justify="right")
    if not is_small:
        shown.add_column("mostly taken for")
    for number, (name, row) in enumerate(zip(found.class_names, found.matrix, strict=True)):
        accuracy = found.class_accuracies[number]
        cells = [f"{number} {name}", "" if accuracy is None else f"{accuracy:.3f}"]
        shown.add_row(*cells, *(map(str, row) if is_small else [_taken_for(found, number)]))
    return shown


def _taken_for(found: Report, number: int) -> str:
    others = [(n, other) for other, n in enumerate(found.matrix[number]) if other != number and n]
    return ", ".join(f"{found.class_names[other]} {n}" for n, other in sorted(others)[:-4:-1])


def lines(found: Report) -> Iterator[str]:
    """Yield the calibration error and the worst mistakes."""
    yield f"calibration error {found.calibration_error:.4f} (15 bins)"
    for mistake in found.mistakes:
        yield (
            f"test image {mistake['image']}: {mistake['class']} taken for {mistake['predicted']}, "
            f"with probability {mistake['probability']:.3f}"
        )
