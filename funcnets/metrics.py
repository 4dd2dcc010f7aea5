"""Metrics of classification: correct predictions of a batch, and their running averages."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets import losses


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of rows of `logits` (N, K) whose maximum is at the label (N,), 0-d int64.

    Of labels that are probabilities (N, K), the label is the most probable class.

    Raises ValueError for another rank, dtype or batch size.

    >>> import torch
    >>> from funcnets import metrics
    >>> metrics.correct(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor(1)
    """
    losses.check_logits_and_labels(logits, labels)
    classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
    return (logits.argmax(dim=1) == classes).sum()


def measure(loss: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the measurements of a batch: its mean `loss`, and its number of `correct` predictions.

    `correct` is there if the labels name classes, see `losses.name_classes`: a regression has no
    correct predictions.
    """
    if losses.name_classes(logits, labels):
        return {"loss": loss, "correct": correct(logits, labels)}
    return {"loss": loss}


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of rows of `logits` (N, K) whose maximum is at the label, 0-d float32.

    Raises ValueError for another rank, dtype or batch size.
    """
    return correct(logits, labels).to(torch.float32) / labels.shape[0]


class Running(NamedTuple):
    """Running averages over the examples so far; `Running()` is the one before the first batch.

    Its fields are plain numbers, so `running._asdict()` goes through JSON and back without loss.

    >>> from funcnets import metrics
    >>> running = metrics.Running().add(loss=1.0, correct=3, count=4).add(2.0, 1, 4)
    >>> running.loss, running.accuracy
    (1.5, 0.5)
    """

    loss_sum: float = 0.0
    correct: int | None = 0  # None for a regression, which has no correct predictions
    count: int = 0  # type: ignore[assignment]  # hides the method of tuples

    def add(self, loss: float | Tensor, correct: int | Tensor | None, count: int) -> "Running":
        """Return the averages with one more batch: its mean loss, correct examples and size.

        `correct` is None for a regression.  Reading a 0-d tensor waits for its device.
        """
        known = None if correct is None or self.correct is None else self.correct + int(correct)
        return Running(self.loss_sum + float(loss) * count, known, self.count + count)

    @property
    def loss(self) -> float:
        """Mean loss of an example; nan before the first batch."""
        return self.loss_sum / self.count if self.count else math.nan

    @property
    def accuracy(self) -> float:
        """Fraction of correct examples; nan before the first batch, and for a regression."""
        return math.nan if self.correct is None or not self.count else self.correct / self.count
