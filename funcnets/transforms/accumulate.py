"""Gradients of a batch that is too large for the memory, from micro-batches one after another."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from funcnets import metrics, tree
from funcnets.core import Layer, Params, State
from funcnets.train import Batch, Gradient, Loss, Measurements, batch_gradient, check_batch
from funcnets.transforms.statistics import (
    Moments,
    Statistics,
    Unknown,
    count_batch_norms,
    measured,
    noise_of_rows,
    normalized_by,
)

Source = Literal["batch", "micro_batch"]


def accumulate(micro_batch_size: int, *, statistics: Source = "batch") -> Gradient:
    """The gradients of the batch by micro-batches, for `train.make_train_step`.

    The last micro-batch may be smaller.  An example has the dropout mask that it has in the whole
    batch under the same key; each pass over a micro-batch draws a layer's mask for the whole batch.
    What batch norm normalises by, `statistics` says:

    - `batch`: the statistics of the whole batch, and the gradient goes through them: gradients and
      running statistics are those of the whole batch, in the activations' memory of a
      micro-batch.  For each batch norm there is a pass as far as it, to know its statistics from
      those before it, and one from it to the end and back, for the gradient with respect to them:
      with L of them evenly apart, (3 L + 3) / 2 forward and (L + 1) / 2 backward passes.
    - `micro_batch`: the usual, cheap form, of one forward and one backward pass.  Each micro-batch
      has its own statistics, so it computes another function, and the running statistics move
      once a micro-batch.

    Without batch norm both are the same, one pass.  The loss must be a mean over the examples.

    Raises ValueError for a size below 1, or other statistics, and LayerError, from a call, for a
    batch norm inside a layer under `remat` whose statistics are to be the whole batch's.
    """
    if not isinstance(micro_batch_size, int) or micro_batch_size < 1:
        raise ValueError(f"micro_batch_size is {micro_batch_size}; expected 1 or more examples")
    if statistics not in get_args(Source):
        expected = " or ".join(get_args(Source))
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
        runs = _divide(net, loss, batch, micro_batch_size, key)
        function = _by_the_whole if statistics == "batch" else _by_their_own
        return function(runs, params, state)

    return gradient


class _Run(NamedTuple):
    """One micro-batch in training."""

    net: Layer  # with the noise of these rows
    loss: Loss  # times the micro-batch's share of the whole
    batch: Batch
    key: Tensor | None
    share: float  # of the whole batch
    whole: int  # examples in the whole batch

    def next_moments(self, params: Params, state: State, known: Statistics) -> tuple[int, Moments]:
        """Number and moments of the first batch norm whose statistics aren't known."""
        moments: Statistics = {}
        with contextlib.suppress(Unknown):
            self._apply(params, state, known, moments)
        return list(moments.items())[-1]

    def value(
        self, params: Params, state: State, known: Statistics, cotangents: Statistics
    ) -> tuple[Tensor, tuple[Tensor, Tensor, State]]:
        """What it adds to the loss, itself and through its moments; loss, correct and state."""
        moments: Statistics = {}
        logits, after = self._apply(params, state, known, moments)
        labels = self.batch[1]
        loss = self.loss(logits, labels)
        through = [
            (cotangent * moment).sum()
            for number in cotangents
            for cotangent, moment in zip(cotangents[number], moments[number], strict=True)
        ]
        return sum(through, loss), (loss, metrics.correct(logits, labels), after)

    def _apply(
        self, params: Params, state: State, known: Statistics, moments: Statistics
    ) -> tuple[Tensor, State]:
        net = measured(normalized_by(self.net, known, self.whole), moments)
        return net.apply(params, state, self.batch[0], train=True, key=self.key)


def _divide(net: Layer, loss: Loss, batch: Batch, size: int, key: Tensor | None) -> list[_Run]:
    """The micro-batches of `size` examples, and what is left as the last one."""
    check_batch(batch)
    count = len(batch[1])
    everything = (*batch, torch.arange(count, device=batch[1].device))

    def run(x: Tensor, labels: Tensor, rows: Tensor) -> _Run:
        share = len(labels) / count
        own = noise_of_rows(net, rows, count)
        return _Run(own, lambda y, labels: share * loss(y, labels), (x, labels), key, share, count)

    return [run(*part) for part in zip(*(values.split(size) for values in everything), strict=True)]


def _by_their_own(
    runs: Sequence[_Run], params: Params, state: State
) -> tuple[Params, State, Measurements]:
    total: Any = None
    for run in runs:
        grads, state, measurements = batch_gradient(
            run.net, run.loss, params, state, run.batch, key=run.key
        )
        total = _add(total, (grads, measurements))
    grads, measurements = total
    return grads, state, measurements


def _by_the_whole(
    runs: Sequence[_Run], params: Params, state: State
) -> tuple[Params, State, Measurements]:
    """The gradient through the whole batch's statistics, which depend on params and each other.

    A statistic is merged from each micro-batch's moments, which depend on params and on the
    statistics before it.  Known one after another, they split the batch's loss into a sum over
    micro-batches.  Its derivatives with respect to them are known in the reverse order: what a
    statistic changes is the loss and the moments of later ones.
    """
    parts = _moments(runs, params, state)
    known = {number: _merge(_shares(runs), moments) for number, moments in parts.items()}
    cotangents = _cotangents(runs, params, state, known, parts)
    total: Any = None
    for run, own in zip(runs, cotangents, strict=True):
        grads, (_, (loss, correct, after)) = torch.func.grad_and_value(run.value, has_aux=True)(
            params, state, known, own
        )
        total = _add(total, (grads, {"loss": loss, "correct": correct}))
    grads, measurements = total
    return grads, after, measurements


def _moments(runs: Sequence[_Run], params: Params, state: State) -> dict[int, list[Moments]]:
    """The moments of each micro-batch at each batch norm, in the order in which they run."""
    parts: dict[int, list[Moments]] = {}
    known: Statistics = {}
    for _ in range(count_batch_norms(runs[0].net)):
        found = [run.next_moments(params, state, known) for run in runs]
        number = found[0][0]
        parts[number] = [moments for _, moments in found]
        known[number] = _merge(_shares(runs), parts[number])
    return parts


def _cotangents(
    runs: Sequence[_Run],
    params: Params,
    state: State,
    known: Statistics,
    parts: dict[int, list[Moments]],
) -> list[Statistics]:
    """The loss's derivatives by the moments of each micro-batch, the last batch norm's first."""
    cotangents: list[Statistics] = [{} for _ in runs]
    merge = functools.partial(_merge, _shares(runs))
    for number in reversed(known):
        total: Any = None
        for run, own in zip(runs, cotangents, strict=True):
            total = _add(total, _with_respect_to(number, run, params, state, known, own))
        (pulled,) = torch.func.vjp(merge, parts[number])[1](total)
        for own, cotangent in zip(cotangents, pulled, strict=True):
            own[number] = cotangent
    return cotangents


def _with_respect_to(
    number: int, run: _Run, params: Params, state: State, known: Statistics, cotangents: Statistics
) -> Moments:
    """The derivative of what the micro-batch adds to the loss, by the statistics `number`."""

    def value(moments: Moments) -> Tensor:
        return run.value(params, state, {**known, number: moments}, cotangents)[0]

    return torch.func.grad(value)(known[number])


def _merge(shares: Sequence[float], parts: Sequence[Moments]) -> Moments:
    """The moments of the whole from those of its parts, which have these shares of its values.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979: no difference of large squares.
    """
    mean = torch.stack([share * m for share, (m, _) in zip(shares, parts, strict=True)]).sum(0)
    spreads = [share * (v + (m - mean) ** 2) for share, (m, v) in zip(shares, parts, strict=True)]
    return mean, torch.stack(spreads).sum(0)


def _shares(runs: Sequence[_Run]) -> list[float]:
    return [run.share for run in runs]


def _add(total: Any, part: Any) -> Any:
    return part if total is None else tree.map(torch.add, total, part)
