"""Gradient of each example's loss, also where batch norm makes examples depend on each other."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import vmap

from funcnets import losses, metrics, tree
from funcnets.core import Layer, Params, State, check_layer, eval_shape
from funcnets.interop.untagged_state import refuse_untagged_state
from funcnets.layers import count_batch_norms, noise_of_rows
from funcnets.train import Batch, Gradient, Loss, Measurements, check_batch
from funcnets.transforms.statistics import (
    MomentsByNumber,
    frozen_statistics,
    normalize_by,
    record_moments,
)

ExampleStatistics = Literal["frozen", "batch_constant", "batch"]
"""Statistics of batch norms in `per_example_gradients`, which explains them."""


class PerExample(NamedTuple):
    """Gradients, losses and logits of the N examples of a batch."""

    gradients: Params  # the tree of params, each leaf with a first dimension of N
    losses: Tensor  # (N,)
    logits: Tensor  # (N, K)
    state: State  # running statistics after the batch


def per_example_gradients(
    net: Layer,
    params: Params,
    state: State,
    batch: Batch,
    *,
    key: Tensor | None = None,
    statistics: ExampleStatistics | None = None,
    loss: Loss = losses.cross_entropy,
    chunk_size: int | None = None,
) -> PerExample:
    """Return the gradient of each example's loss in training, with losses, logits and statistics.

    Each example has the dropout mask that it has in the whole batch under the same key.  Batch norm
    makes an example depend on the others; `statistics` chooses how:

    - `frozen`: batch norm normalises by the running statistics and keeps them.  Examples are
      independent, as differential privacy requires.
    - `batch_constant`: batch norm normalises by the batch's statistics, taken as constants.
    - `batch`: batch norm normalises by the batch's statistics, and the gradient goes through them.
      The mean of these gradients is the gradient of the batch's mean loss.

    The first two cost about one backward pass for each example, over this example alone; `batch`
    costs N backward passes over the whole batch.  Without batch norm all three are the same.

    Args:
        net: network.
        params: its parameters.
        state: its running statistics.
        batch: images (N, C, H, W), or rows (N, C), and labels (N, …).  With `frozen` statistics it
            may be empty.
        key: key for dropout, as in `net.apply`.
        statistics: one of the three; may be None without batch norm.
        loss: function of logits (N, K) and labels (N, …) that returns their mean loss, 0-d.
        chunk_size: number of gradients computed at once, which bounds the memory; None for all.

    Raises ValueError if there is batch norm and `statistics` is None, for other statistics, for
    labels that don't fit the images, and for a chunk size below 1; LayerError for a random layer
    without the tag `layers.MultiplicativeNoise`, for a layer without parts that changes its state
    and has no tag `layers.BatchStatistics`, and with `batch_constant` for a batch norm inside a
    layer under `remat`.

    >>> import torch
    >>> from funcnets import layers, random, transforms
    >>> net, x, labels = layers.linear(3), torch.ones(2, 4), torch.tensor([0, 1])
    >>> params, state = net.init(random.key(0), x)
    >>> each = transforms.per_example_gradients(net, params, state, (x, labels))
    >>> tuple(each.gradients["weight"].shape), tuple(each.losses.shape)
    ((2, 3, 4), (2,))
    """
    check_layer(net, "the network")
    if statistics is None and count_batch_norms(net) == 0:
        statistics = "frozen"
    _check_options(statistics, chunk_size, get_args(ExampleStatistics))
    check_batch(batch, least=0 if statistics == "frozen" else 1)
    if not len(batch[0]):
        return _of_no_examples(net, params, state, batch[0])
    if statistics == "batch":
        net = refuse_untagged_state(net)
        return _jointly(net, params, state, batch, key, loss, chunk_size)
    if statistics == "batch_constant":
        moments: MomentsByNumber = {}
        x, labels = batch
        recording = record_moments(net, moments)
        _, after = recording.apply(params, state, x, train=True, key=key)
        constant = normalize_by(net, moments, len(labels))
        each = _separately(constant, params, state, batch, key, loss, chunk_size)
        return each._replace(state=after)
    return _separately(frozen_statistics(net), params, state, batch, key, loss, chunk_size)


def _check_options(statistics: Any, chunk_size: Any, allowed: tuple[Any, ...]) -> None:
    if statistics not in allowed:
        raise ValueError(
            f"statistics is {statistics!r}, and batch norm makes examples depend on each other: "
            f"expected one of {', '.join(get_args(ExampleStatistics))}"
        )
    if chunk_size is not None and not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(
            f"chunk_size is {chunk_size!r}, expected 1 or more, or None for all at once"
        )


def _of_no_examples(net: Layer, params: Params, state: State, x: Tensor) -> PerExample:
    """Return the gradients of an empty batch, N = 0, without running the network on it."""
    one = x.new_empty(1, *x.shape[1:], device="meta")
    output = eval_shape(net, params, state, one)
    logits = torch.zeros((0, *output.shape[1:]), dtype=output.dtype, device=x.device)
    losses = torch.zeros(0, dtype=torch.promote_types(output.dtype, torch.float32), device=x.device)
    gradients = tree.map(lambda leaf: leaf.new_zeros(0, *leaf.shape), params)
    return PerExample(gradients, losses, logits, state)


def _separately(
    net: Layer,
    params: Params,
    state: State,
    batch: Batch,
    key: Tensor | None,
    loss: Loss,
    chunk_size: int | None,
) -> PerExample:
    """Return the gradients by `vmap` over single examples; `net` must not use batch statistics."""
    x, labels = batch
    count = len(labels)

    def gradient(x: Tensor, label: Tensor, row: Tensor) -> tuple[Params, Tensor, Tensor]:
        def loss_of(params: Params) -> tuple[Tensor, Tensor]:
            with_noise = noise_of_rows(net, row, count)
            logits, _ = with_noise.apply(params, state, x, train=True, key=key)
            return loss(logits, label), logits[0]

        gradients, (value, logits) = torch.func.grad_and_value(loss_of, has_aux=True)(params)
        return gradients, value, logits

    rows = torch.arange(count, device=labels.device)
    batches_of_one = (values[:, None] for values in (x, labels, rows))
    return PerExample(*vmap(gradient, chunk_size=chunk_size)(*batches_of_one), state)


def _jointly(
    net: Layer,
    params: Params,
    state: State,
    batch: Batch,
    key: Tensor | None,
    loss: Loss,
    chunk_size: int | None,
) -> PerExample:
    """Return the gradients by a backward pass over the whole batch for each example's loss."""
    x, labels = batch

    def losses_of(params: Params) -> tuple[Tensor, tuple[Tensor, State]]:
        logits, after = net.apply(params, state, x, train=True, key=key)
        return vmap(loss)(logits[:, None], labels[:, None]), (logits, after)

    result: Any = torch.func.vjp(losses_of, params, has_aux=True)
    values, vjp, (logits, after) = result
    cotangents = torch.eye(len(values), dtype=values.dtype, device=values.device)
    (gradients,) = vmap(vjp, chunk_size=chunk_size)(cotangents)
    return PerExample(gradients, values, logits, after)


def per_example(
    statistics: ExampleStatistics | None = None, *, chunk_size: int | None = None
) -> Gradient:
    """Return the `gradient` argument of `train.make_train_step` for gradients of each example.

    The gradients have a first dimension of N, so the optimizer must begin with a transformation
    that combines them, such as `optim.clip_per_example`.  For the arguments see
    `per_example_gradients`.

    With `frozen` statistics a batch may be empty, as Poisson sampling draws some: its loss is 0,
    and `optim.private` makes of it a step of noise alone, which differential privacy needs.

    Raises ValueError for other statistics or a chunk size below 1; from a call, the errors of
    `per_example_gradients`.
    """
    _check_options(statistics, chunk_size, (None, *get_args(ExampleStatistics)))

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
        loss_value = each.losses.mean() if len(each.losses) else each.losses.sum()
        return each.gradients, each.state, metrics.measure(loss_value, each.logits, batch[1])

    return gradient
