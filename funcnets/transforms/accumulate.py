"""Gradient accumulation: the gradient of a large batch from micro-batches, one after another."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from funcnets import metrics, tree
from funcnets.core import Layer, Params, State
from funcnets.interop.untagged_state import refuse_untagged_state
from funcnets.layers import count_batch_norms, noise_of_rows
from funcnets.train import Batch, Gradient, Loss, Measurements, batch_gradient, check_batch
from funcnets.transforms.statistics import (
    Moments,
    MomentsByNumber,
    UnknownMoments,
    normalize_by,
    record_moments,
)

AccumulatedStatistics = Literal["batch", "micro_batch"]
"""Statistics of batch norms in `accumulate`, which explains them."""


def accumulate(micro_batch_size: int, *, statistics: AccumulatedStatistics = "batch") -> Gradient:
    """Return the `gradient` argument of `train.make_train_step` that accumulates micro-batches.

    The activations of one micro-batch are in memory at a time.  Each example has the dropout mask
    that it has in the whole batch under the same key.

    Args:
        micro_batch_size: examples in a micro-batch; the last one may be smaller.
        statistics: by which batch norm normalises.

            - `batch`: statistics of the whole batch, and the gradient goes through them, so that
              gradients and running statistics equal those of the whole batch.  Each batch norm
              needs a pass up to it, for its statistics, and one from it to the end and back, for
              the gradient with respect to them: L batch norms, evenly spaced, need about
              (3 L + 3) / 2 forward and (L + 1) / 2 backward passes.
            - `micro_batch`: statistics of each micro-batch, in one forward and one backward pass.
              This is the usual form; it computes another function of the parameters, and updates
              the running statistics once for each micro-batch.

    Without batch norm both are the same, in one pass.  The loss must be a mean over the examples.

    Raises ValueError for a size below 1 or other statistics; LayerError, from a call, for a random
    layer without the tag `layers.MultiplicativeNoise`, for a layer without parts that changes its
    state and has no tag `layers.BatchStatistics`, and with `batch` for a batch norm inside a layer
    under `remat`.

    >>> from funcnets import layers, optim, train, transforms
    >>> gradient = transforms.accumulate(64)
    >>> step = train.make_train_step(layers.linear(3), optim.sgd(0.1), gradient=gradient)
    """
    if not isinstance(micro_batch_size, int) or micro_batch_size < 1:
        raise ValueError(f"micro_batch_size is {micro_batch_size}; expected 1 or more examples")
    if statistics not in get_args(AccumulatedStatistics):
        expected = " or ".join(get_args(AccumulatedStatistics))
        raise ValueError(f"statistics is {statistics!r}; expected {expected}")

    def gradient(
        net: Layer,
        loss: Loss,
        params: Params,
        state: State,
        batch: Batch,
        *,
        key: Tensor | None = None,
    ) -> tuple[Params, State, Measurements]:
        if statistics == "batch":
            micro_batches = _split(net, loss, batch, micro_batch_size, key)
            return _with_batch_statistics(micro_batches, params, state)
        checked = refuse_untagged_state(net)
        micro_batches = _split(checked, loss, batch, micro_batch_size, key)
        return _with_micro_batch_statistics(micro_batches, params, state)

    return gradient


class _MicroBatch(NamedTuple):
    """One micro-batch in training."""

    net: Layer  # with the dropout masks of these examples
    loss: Loss  # times `share`
    batch: Batch
    key: Tensor | None
    share: float  # fraction of the whole batch
    batch_size: int  # examples in the whole batch

    def next_moments(
        self, params: Params, state: State, known: MomentsByNumber
    ) -> tuple[int, Moments]:
        """Return number and moments of the first batch norm that isn't in `known`."""
        moments: MomentsByNumber = {}
        with contextlib.suppress(UnknownMoments):
            self._apply(params, state, known, moments)
        return list(moments.items())[-1]

    def value(
        self, params: Params, state: State, known: MomentsByNumber, cotangents: MomentsByNumber
    ) -> tuple[Tensor, tuple[Measurements, State]]:
        """Return the loss plus the products of cotangents and moments; measurements and state."""
        moments: MomentsByNumber = {}
        logits, after = self._apply(params, state, known, moments)
        labels = self.batch[1]
        loss = self.loss(logits, labels)
        products = [
            (cotangent * moment).sum()
            for number in cotangents
            for cotangent, moment in zip(cotangents[number], moments[number], strict=True)
        ]
        return sum(products, loss), (metrics.measure(loss, logits, labels), after)

    def _apply(
        self, params: Params, state: State, known: MomentsByNumber, moments: MomentsByNumber
    ) -> tuple[Tensor, State]:
        net = record_moments(normalize_by(self.net, known, self.batch_size), moments)
        return net.apply(params, state, self.batch[0], train=True, key=self.key)


def _split(
    net: Layer, loss: Loss, batch: Batch, size: int, key: Tensor | None
) -> list[_MicroBatch]:
    """Return the micro-batches of `size` examples; the last one may be smaller."""
    check_batch(batch)
    count = len(batch[1])

    def micro_batch(x: Tensor, labels: Tensor, rows: Tensor) -> _MicroBatch:
        share = len(labels) / count
        return _MicroBatch(
            noise_of_rows(net, rows, count),
            lambda logits, labels: share * loss(logits, labels),
            (x, labels),
            key,
            share,
            count,
        )

    rows = torch.arange(count, device=batch[1].device)
    pieces = (torch.split(values, size) for values in (*batch, rows))
    return [micro_batch(*piece) for piece in zip(*pieces, strict=True)]


def _with_micro_batch_statistics(
    micro_batches: Sequence[_MicroBatch], params: Params, state: State
) -> tuple[Params, State, Measurements]:
    total: Any = None
    for part in micro_batches:
        grads, state, measurements = batch_gradient(
            part.net, part.loss, params, state, part.batch, key=part.key
        )
        total = _add(total, (grads, measurements))
    grads, measurements = total
    return grads, state, measurements


def _with_batch_statistics(
    micro_batches: Sequence[_MicroBatch], params: Params, state: State
) -> tuple[Params, State, Measurements]:
    """Return the gradient through the whole batch's statistics, which depend on the parameters.

    The moments of a batch norm are merged from those of the micro-batches, which depend on the
    parameters and on the moments of earlier batch norms.  With all moments known, the batch's loss
    is a sum over micro-batches.  Its derivatives with respect to moments come in reverse order, as
    the moments of one batch norm change the loss and the moments of later ones.
    """
    moments = _moments(micro_batches, params, state)
    shares = _shares(micro_batches)
    known = {number: _merge(shares, each) for number, each in moments.items()}
    cotangents = _cotangents(micro_batches, params, state, known, moments)
    total: Any = None
    for part, own in zip(micro_batches, cotangents, strict=True):
        grads, (_, (measured, after)) = torch.func.grad_and_value(part.value, has_aux=True)(
            params, state, known, own
        )
        total = _add(total, (grads, measured))
    grads, measurements = total
    return grads, after, measurements


def _moments(
    micro_batches: Sequence[_MicroBatch], params: Params, state: State
) -> dict[int, list[Moments]]:
    """Return the moments of each micro-batch at each batch norm, in the order of execution."""
    moments: dict[int, list[Moments]] = {}
    known: MomentsByNumber = {}
    for _ in range(count_batch_norms(micro_batches[0].net)):
        found = [part.next_moments(params, state, known) for part in micro_batches]
        number = found[0][0]
        moments[number] = [each for _, each in found]
        known[number] = _merge(_shares(micro_batches), moments[number])
    return moments


def _cotangents(
    micro_batches: Sequence[_MicroBatch],
    params: Params,
    state: State,
    known: MomentsByNumber,
    moments: dict[int, list[Moments]],
) -> list[MomentsByNumber]:
    """Return the derivatives of the loss with respect to the moments of each micro-batch."""
    cotangents: list[MomentsByNumber] = [{} for _ in micro_batches]
    merge = functools.partial(_merge, _shares(micro_batches))
    for number in reversed(known):
        total: Any = None
        for part, own in zip(micro_batches, cotangents, strict=True):
            total = _add(total, _gradient_of_moments(number, part, params, state, known, own))
        (gradients,) = torch.func.vjp(merge, moments[number])[1](total)
        for own, gradient in zip(cotangents, gradients, strict=True):
            own[number] = gradient
    return cotangents


def _gradient_of_moments(
    number: int,
    part: _MicroBatch,
    params: Params,
    state: State,
    known: MomentsByNumber,
    cotangents: MomentsByNumber,
) -> Moments:
    """Return the derivative of the value of `part` with respect to the moments `known[number]`."""

    def value(moments: Moments) -> Tensor:
        return part.value(params, state, {**known, number: moments}, cotangents)[0]

    gradient: Moments = torch.func.grad(value)(known[number])
    return gradient


def _merge(shares: Sequence[float], parts: Sequence[Moments]) -> Moments:
    """Return the moments of the whole batch from those of its parts and their shares of it.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979: no difference of large squares.
    """
    mean = torch.stack([share * m for share, (m, _) in zip(shares, parts, strict=True)]).sum(0)
    spreads = [share * (v + (m - mean) ** 2) for share, (m, v) in zip(shares, parts, strict=True)]
    return mean, torch.stack(spreads).sum(0)


def _shares(micro_batches: Sequence[_MicroBatch]) -> list[float]:
    return [part.share for part in micro_batches]


def _add(total: Any, part: Any) -> Any:
    return part if total is None else tree.map(torch.add, total, part)
