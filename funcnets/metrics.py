"""What is measured while a network trains: counts on a batch, and running averages of them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets.losses import check_logits_and_labels


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many rows of `logits` (N, K) have their maximum at the label (N,), as 0-d int64.

    Raises ValueError for another rank, dtype or batch size.
    """
    check_logits_and_labels(logits, labels)
    return (logits.argmax(dim=1) == labels).sum()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The fraction of rows of `logits` (N, K) with their maximum at the label (N,), 0-d float32.

    Raises ValueError for another rank, dtype or batch size.
    """
    return correct(logits, labels).to(torch.float32) / labels.shape[0]


class Running(NamedTuple):
    """Averages over the examples seen so far, a batch at a time; starts empty as `Running()`.

    Plain numbers, so `running._asdict()` goes through JSON and back without loss.
    """

    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0  # type: ignore[assignment]  # hides the method of tuples

    def add(self, loss: float | Tensor, correct: int | Tensor, count: int) -> "Running":
        """With one more batch: its mean loss, its number of correct examples and its size.

        0-d tensors are read, which waits for the device.
        """
        return Running(
            self.loss_sum + float(loss) * count, self.correct + int(correct), self.count + count
        )

    @property
    def loss(self) -> float:
        """The mean loss an example; nan before the first batch."""
        return self.loss_sum / self.count if self.count else math.nan

    @property
    def accuracy(self) -> float:
        """The fraction of correct examples; nan before the first batch."""
        return self.correct / self.count if self.count else math.nan
