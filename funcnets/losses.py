"""Losses: pure functions of logits and labels, which are class numbers or probabilities."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")

# torch ignores examples with one label, by default -100, and averages over the others.  Here each
# example counts, so that a batch's mean loss is the mean over its micro-batches.
_IGNORED_LABEL = -(2**62)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Return the cross-entropy -log softmax(logits)[label], averaged over the batch.

    Labels that are probabilities give -Σ_k p_k · log softmax(logits)[k].  It is what
    `torch.nn.functional.cross_entropy` computes.

    Args:
        logits: (N, K), floating.
        labels: (N,), int64, class numbers from 0 to K - 1; no label is ignored, not even -100.
            Or (N, K), floating, a probability for each class, such as `augment.mixup` makes; that
            they are 0 or more and add up to 1 is not checked.
        label_smoothing: s in [0, 1]; the target is 1 - s at the label plus s / K at every class
            (Szegedy et al., "Rethinking the Inception architecture", 2016, section 7).
        reduction: `mean` or `sum` for a 0-d result, or `none` for (N,).

    The result is float32 or wider, and is computed in this precision.

    Raises ValueError for another rank, dtype, batch size, reduction or smoothing, and outside of
    `jit` for a label out of range.

    >>> import torch
    >>> from funcnets import losses
    >>> losses.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))  # log 4
    tensor(1.3863)
    >>> losses.cross_entropy(torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    tensor(1.3863)
    """
    check_logits_and_labels(logits, labels)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number in [0, 1]")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.dtype) if labels.is_floating_point() else labels
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    try:
        return F.cross_entropy(logits, labels, ignore_index=_IGNORED_LABEL, **options)
    except (IndexError, RuntimeError) as error:  # RuntimeError under vmap
        if "out of bounds" not in str(error):
            raise
        raise ValueError(
            f"a label is out of range ({error}); expected 0 to {logits.shape[1] - 1} for logits of "
            f"shape {tuple(logits.shape)}: give the network as many classes as there are labels"
        ) from None


def check_logits_and_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless `logits` are floating (N, K), and `labels` class numbers for them.

    Class numbers are int64 (N,); probabilities, floating (N, K), are accepted as well.
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits are {_describe(logits)}; expected a floating tensor of shape (N, K): "
            "a row for each example, a column for each class"
        )
    if not name_classes(logits, labels):
        raise ValueError(
            f"labels are {_describe(labels)}; expected int64 of shape ({logits.shape[0]},), one "
            "class number for each row of logits (convert with labels.to(torch.int64)), or "
            f"floating of shape {tuple(logits.shape)}, a probability for each class"
        )


def name_classes(logits: Tensor, labels: Tensor) -> bool:
    """Return True if `labels` are class numbers or probabilities for `logits`, by their shapes.

    Class numbers are int64 (N,), probabilities floating (N, K), for floating logits (N, K).

    >>> import torch
    >>> from funcnets import losses
    >>> [losses.name_classes(torch.ones(2, 3), labels)
    ...  for labels in (torch.tensor([0, 2]), torch.full((2, 3), 1 / 3), torch.ones(2))]
    [True, True, False]
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        return False
    if labels.is_floating_point():
        return labels.shape == logits.shape
    return labels.shape == logits.shape[:1] and labels.dtype == torch.int64


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
