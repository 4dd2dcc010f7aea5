"""Losses: pure functions from a network's output and the labels to a tensor."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")

# torch leaves out the examples of one label, by default -100: then a mean would be one over fewer
# examples than there are, of which the mean of micro-batches' means knows nothing.
_NOBODYS_LABEL = -(2**62)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """-log softmax(logits) at the label: the mean over the batch, or the sum, or each ("none").

    `logits` (N, K), floating; `labels` (N,), int64, in [0, K): every example counts, so torch's
    -100 is out of range too.  The result is 0-d, or (N,) for "none", and float32 for logits of
    lower precision, in which it is computed too.

    With `label_smoothing` s the target is 1 - s at the label, and s / K more at every class
    (Szegedy et al., "Rethinking the Inception architecture", 2016, section 7).

    Raises ValueError for another rank, dtype, batch size, reduction or smoothing, and, outside of
    `jit`, for a label out of range.
    """
    check_logits_and_labels(logits, labels)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number in [0, 1]")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    try:
        return F.cross_entropy(logits, labels, ignore_index=_NOBODYS_LABEL, **options)
    except (IndexError, RuntimeError) as error:  # the latter under vmap
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
            f"logits are {_described(logits)}; expected a floating tensor of shape (N, K): "
            "one row an example, one column a class"
        )
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {_described(labels)}; expected int64 of shape ({logits.shape[0]},), one "
            "class number for each row of logits; convert with labels.to(torch.int64)"
        )


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
