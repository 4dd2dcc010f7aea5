"""Metrics of classification: correct predictions of a batch, and their running averages."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets.losses import check_logits_and_labels


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of rows of `logits` (N, K) whose maximum is at the label (N,), 0-d int64.

    Raises ValueError for another rank, dtype or batch size.

    >>> import torch
    >>> from funcnets import metrics
    >>> metrics.correct(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor(1)
    """
    check_logits_and_labels(logits, labels)
    return (logits.argmax(dim=1) == labels).sum()


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
    correct: int = 0
    count: int = 0  # type: ignore[assignment]  # hides the method of tuples

    def add(self, loss: float | Tensor, correct: int | Tensor, count: int) -> "Running":
        """Return the averages with one more batch: its mean loss, correct examples and size.

        Reading a 0-d tensor waits for its device.
        """
        return Running(
            self.loss_sum + float(loss) * count, self.correct + int(correct), self.count + count
        )

    @property
    def loss(self) -> float:
        """Mean loss of an example; nan before the first batch."""
        return self.loss_sum / self.count if self.count else math.nan

    @property
    def accuracy(self) -> float:
        """Fraction of correct examples; nan before the first batch."""
        return self.correct / self.count if self.count else math.nan
