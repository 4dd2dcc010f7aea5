"""Metrics of classification: correct predictions of a batch, and their running averages."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

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


T = TypeVar("T")
Numbers = list[list[float]]
Fold = Callable[[T, Numbers], T]


def numbers_of(measured: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield the `loss` of measurements, and the number of `correct` predictions if there is one."""
    yield measured["loss"]
    if "correct" in measured:
        yield measured["correct"]


class Deferred(Generic[T]):
    """A value that depends on tensors of a device, which are read only when it is asked for.

    So nothing waits for the device where the value isn't needed yet.

    >>> import torch
    >>> from funcnets import metrics
    >>> total = metrics.Deferred(1.0)
    >>> for x in (torch.tensor(2.0), torch.tensor([3.0, 4.0])):
    ...     total = total.then(lambda before, numbers: before + sum(numbers[0]), [x])
    >>> total.unread, total.read(), total.unread
    (2, 10.0, 0)
    """

    def __init__(self, value: T) -> None:
        self._value = value
        self._before: Deferred[T] | None = None  # None once the value is known
        self.unread = 0  # values before this one that aren't known yet, and this one

    def then(self, fold: Fold[T], tensors: Sequence[Tensor]) -> "Deferred[T]":
        """Return the value `fold(self.read(), numbers)`; numbers are those of each tensor."""
        after = Deferred(self._value)
        after._before, after._fold, after._tensors = self, fold, tensors
        after.unread = self.unread + 1
        return after

    def read(self) -> T:
        """Return the value: wait for the device, once for all values before it."""
        chain = [*self._unknown()][::-1]
        numbers = iter(_read([x for each in chain for x in each._tensors]))
        for each in chain:
            assert each._before is not None
            own = list(itertools.islice(numbers, len(each._tensors)))
            each._value = each._fold(each._before._value, own)
            each._before, each._tensors, each.unread = None, (), 0
        return self._value

    def _unknown(self) -> "Iterator[Deferred[T]]":
        value: Deferred[T] | None = self
        while value is not None and value._before is not None:
            yield value
            value = value._before

    _fold: Fold[T]
    _tensors: Sequence[Tensor]


def _read(tensors: Sequence[Tensor]) -> Numbers:
    """Return the numbers of each tensor; tensors of one dtype are read at once."""
    flat: dict[torch.dtype, Iterator[float]] = {}
    for dtype in {x.dtype for x in tensors}:
        parts = [x.detach().reshape(-1) for x in tensors if x.dtype is dtype]
        flat[dtype] = iter(torch.cat(parts).tolist())
    return [list(itertools.islice(flat[x.dtype], x.numel())) for x in tensors]


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the confusion matrix, int64 (K, K): rows are labels, columns predictions.

    Raises ValueError for another rank, dtype or batch size, and for labels that are probabilities.

    >>> import torch
    >>> from funcnets import metrics
    >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> metrics.confusion(logits, torch.tensor([0, 1, 1]))
    tensor([[1, 0],
            [1, 1]])
    """
    losses.check_logits_and_labels(logits, labels)
    if labels.is_floating_point():
        raise ValueError("confusion: labels are probabilities; expected class numbers")
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, in [0, 1].

    Examples are divided into bins of equal width by the probability of their predicted class; it is
    the mean over the examples of |accuracy - mean probability| of their bin.  Guo et al., "On
    calibration of modern neural networks", 2017, section 2.

    Args:
        probabilities: (N, K), of each class.
        labels: class numbers (N,).
        bins: number of bins.

    Raises ValueError for another rank, dtype or batch size.

    >>> import torch
    >>> from funcnets import metrics
    >>> sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> metrics.calibration_error(sure, torch.tensor([0, 1]))
    0.5
    """
    losses.check_logits_and_labels(probabilities, labels)
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=labels.device)
    gap = gap.index_add(0, bin_of, right - confidence)
    return float(gap.abs().sum() / len(labels))


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
