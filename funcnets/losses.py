"""Losses: pure functions of logits and labels."""

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

    Args:
        logits: (N, K), floating.
        labels: (N,), int64, class numbers from 0 to K - 1; no label is ignored, not even -100.
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
    """
    check_logits_and_labels(logits, labels)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number in [0, 1]")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
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
    """Raise ValueError unless `logits` are floating (N, K) and `labels` int64 (N,)."""
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits are {_describe(logits)}; expected a floating tensor of shape (N, K): "
            "a row for each example, a column for each class"
        )
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {_describe(labels)}; expected int64 of shape ({logits.shape[0]},), one "
            "class number for each row of logits; convert with labels.to(torch.int64)"
        )


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
