"""A gradient for each example of a batch, with a stated meaning where batch norm joins them."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import vmap

from funcnets import losses, metrics
from funcnets.core import Layer, Params, State
from funcnets.train import Batch, Gradient, Loss, Measurements, check_batch
from funcnets.transforms.statistics import (
    Statistics,
    count_batch_norms,
    frozen_statistics,
    measured,
    noise_of_rows,
    normalized_by,
)

Meaning = Literal["frozen", "batch_constant", "batch"]


class PerExample(NamedTuple):
    """What each of N examples gives."""

    gradients: Params  # like params, each leaf with a first axis of N
    losses: Tensor  # (N,)
    logits: Tensor  # (N, K)
    state: State  # the running statistics after the batch


def per_example_gradients(
    net: Layer,
    params: Params,
    state: State,
    batch: Batch,
    *,
    key: Tensor | None = None,
    statistics: Meaning | None = None,
    loss: Loss = losses.cross_entropy,
    chunk_size: int | None = None,
) -> PerExample:
    """The gradient of each example's loss in training, and the losses.

    Each example has the dropout mask that it has in the whole batch under the same key.  What its
    gradient is where batch norm joins the examples, `statistics` says:

    - `frozen`: batch norm uses the running statistics, and leaves them as they are.  The examples
      have nothing to do with each other, as differential privacy needs it.
    - `batch_constant`: it uses the batch's statistics, as if they were constants.
    - `batch`: it uses the batch's statistics, which the example's loss is differentiated through.
      The mean of these gradients is the gradient of the batch's mean loss.

    The first two cost about one backward pass an example, over that example; `batch` costs N
    backward passes over the whole batch.  Without batch norm all are the same.

    Args:
        net: the network.
        params: its parameters.
        state: its running statistics.
        batch: images (N, C, H, W), or rows (N, C), and labels (N,).
        key: for dropout, as in `net.apply`.
        statistics: the meaning; needn't be given without batch norm.
        loss: (logits (N, K), labels (N,)) -> 0-d, the mean over the examples.
        chunk_size: how many gradients are computed at once, which bounds the memory; None: all.

    Raises ValueError where batch norm is there and no meaning is given, where labels don't fit the
    images, or for a chunk of none; LayerError for `batch_constant` where one is inside a layer
    under `remat`.
    """
    check_batch(batch)
    if statistics is None and count_batch_norms(net) == 0:
        statistics = "frozen"
    _check_options(statistics, chunk_size, get_args(Meaning))
    if statistics == "batch":
        return _joined(net, params, state, batch, key, loss, chunk_size)
    if statistics == "batch_constant":
        moments: Statistics = {}
        x, labels = batch
        _, after = measured(net, moments).apply(params, state, x, train=True, key=key)
        constant = normalized_by(net, moments, len(labels))
        return _apart(constant, params, state, batch, key, loss, chunk_size)._replace(state=after)
    return _apart(frozen_statistics(net), params, state, batch, key, loss, chunk_size)


def _check_options(statistics: Any, chunk_size: Any, meanings: tuple[Any, ...]) -> None:
    if statistics not in meanings:
        raise ValueError(
            f"statistics is {statistics!r}, and batch norm joins the examples: expected one of "
            f"{', '.join(get_args(Meaning))}, which say what the gradient of one is"
        )
    if chunk_size is not None and not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(
            f"chunk_size is {chunk_size!r}, expected 1 or more, or None for all at once"
        )


def _apart(
    net: Layer,
    params: Params,
    state: State,
    batch: Batch,
    key: Tensor | None,
    loss: Loss,
    chunk_size: int | None,
) -> PerExample:
    """Each example on its own: `net` normalises by statistics that don't depend on it."""
    x, labels = batch
    count = len(labels)

    def one(x: Tensor, label: Tensor, row: Tensor) -> tuple[Params, Tensor, Tensor]:
        def loss_of(params: Params) -> tuple[Tensor, Tensor]:
            own = noise_of_rows(net, row, count)
            logits, _ = own.apply(params, state, x, train=True, key=key)
            return loss(logits, label), logits[0]

        gradients, (value, logits) = torch.func.grad_and_value(loss_of, has_aux=True)(params)
        return gradients, value, logits

    rows = torch.arange(count, device=labels.device)
    alone = (values[:, None] for values in (x, labels, rows))
    return PerExample(*vmap(one, chunk_size=chunk_size)(*alone), state)


def _joined(
    net: Layer,
    params: Params,
    state: State,
    batch: Batch,
    key: Tensor | None,
    loss: Loss,
    chunk_size: int | None,
) -> PerExample:
    """All examples in one batch, through which each loss is pulled back."""
    x, labels = batch

    def losses_of(params: Params) -> tuple[Tensor, tuple[Tensor, State]]:
        logits, after = net.apply(params, state, x, train=True, key=key)
        return vmap(loss)(logits[:, None], labels[:, None]), (logits, after)

    pulled: Any = torch.func.vjp(losses_of, params, has_aux=True)
    values, pull_back, (logits, after) = pulled
    each = torch.eye(len(values), dtype=values.dtype, device=values.device)
    (gradients,) = vmap(pull_back, chunk_size=chunk_size)(each)
    return PerExample(gradients, values, logits, after)


def per_example(statistics: Meaning | None = None, *, chunk_size: int | None = None) -> Gradient:
    """The gradients of each example, as `per_example_gradients`, for `train.make_train_step`.

    They have a first axis of N, so the optimizer must begin with what takes them together, such as
    `optim.clip_per_example`.

    Raises ValueError for other statistics, or a chunk of none; from a call, what
    `per_example_gradients` raises.
    """
    _check_options(statistics, chunk_size, (None, *get_args(Meaning)))

    def gradient(
        net: Layer,
        loss: Loss,
        params: Params,
        state: State,
        batch: Batch,
        *,
        key: Tensor | None = None,
    ) -> tuple[Any, State, Measurements]:
        options: dict[str, Any] = {"statistics": statistics, "chunk_size": chunk_size}
        each = per_example_gradients(net, params, state, batch, key=key, loss=loss, **options)
        correct = metrics.correct(each.logits, batch[1])
        return each.gradients, each.state, {"loss": each.losses.mean(), "correct": correct}

    return gradient
