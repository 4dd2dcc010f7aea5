"""Gradients of a batch whose examples are divided among processes: those of the whole batch."""

import functools
from typing import Any

import torch
from torch import Tensor

from funcnets import layers, tree
from funcnets.core import Layer, Params, State, rewrite, wrap
from funcnets.interop.untagged_state import with_constant_state
from funcnets.layers import BatchStatistics, count_batch_norms, noise_of_rows
from funcnets.parallel.axis import Axis
from funcnets.train import Batch, Gradient, Loss, Measurements, batch_gradient


def gradient(axis: Axis, *, sync: bool = True, shard_gradient: Gradient | None = None) -> Gradient:
    """Return the gradient of the global batch, of which each process is given its own shard.

    It is the `gradient` of `train.make_train_step`.  In each of the processes:

        step = train.make_train_step(net, optimizer, gradient=parallel.gradient(axis))
        train_state, measured = step(train_state, (axis.shard(images), axis.shard(labels)))

    Gradients, loss and counts are summed over the processes by one all-reduce and divided by the
    global number of examples, so that the train states of all processes stay equal.  The loss must
    be a mean over the examples.  An example has the dropout mask that it has in one process, as the
    key and its global index decide it; each process draws the mask of the whole batch.

    Shards may differ in size.  One without examples (a last batch of fewer examples than there are
    processes) takes part as well: it computes with an image of zeros that has no weight.

    Args:
        axis: the processes; with `Axis()` the result is `shard_gradient` itself.
        sync: True to normalise by the statistics of the global batch (see `synchronize`); False for
            those of each shard, which is another function of the batch.  Then the running
            statistics become the mean over the processes, weighted by their examples.
        shard_gradient: the gradient of a shard, such as `transforms.accumulate(64)`; by default
            `train.batch_gradient`.

    Raises ValueError, from a call, where batch norms are to be synchronised and `shard_gradient`
    is given, where that gives a gradient for each example, and where rank 0 has no example, as then
    no process has one; LayerError where a shard is too small for a batch norm that is not
    synchronised.
    Goyal et al., Accurate, large minibatch SGD, 2017, section 3.
    """
    of_shard = shard_gradient or batch_gradient
    if axis.size == 1:
        return of_shard

    def reduced(
        net: Layer,
        loss: Loss,
        params: Params,
        state: State,
        batch: Batch,
        *,
        key: Tensor | None = None,
    ) -> tuple[Any, State, Measurements]:
        count = len(batch[1])
        if not count and axis.rank == 0:
            raise ValueError(
                "parallel.gradient: rank 0 has no example: the global batch is empty, or was not "
                "divided by axis.shard"
            )
        rows = axis.rows(max(count, 1), batch[1].device)
        shard_net = noise_of_rows(net, rows, len(rows) * axis.size)
        if sync and count_batch_norms(net):
            _check_is_one_pass(shard_gradient)
            shard_net = synchronize(shard_net, axis, has_weight=count > 0)
        shard = batch if count else _stand_in(batch)

        def weighted(logits: Tensor, labels: Tensor) -> Tensor:
            return count * loss(logits, labels)

        found = of_shard(shard_net, weighted, params, state, shard, key=key)
        _check_is_summable(params, found[0])
        return _reduce(axis, count, found, of_state=not sync)

    return reduced


def synchronize(net: Layer, axis: Axis, *, has_weight: bool = True) -> Layer:
    """Return the network whose batch norms in training see the batches of all processes as one.

    They normalise by the mean and the variance of the global batch, to which each process
    contributes by its number of values.  So do the running statistics.  Each batch norm sends one
    all-reduce forward and one backward.

    `has_weight`: False if the values of this process must not count.

    From `apply` in training, another layer without parts that changes its state is refused by a
    LayerError.
    """
    if axis.size == 1:
        return net

    def replaced(name: str | None, layer: Layer) -> Layer:
        tag = layer.tag(BatchStatistics)
        if tag is None:
            return with_constant_state(layer)

        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            if not train:
                return layer.apply(params, state, x)
            count = x.numel() // x.shape[1] if has_weight else 0
            mean, variance, total = _global_statistics(axis, x, count)
            y, _ = layer.apply(params, tag.as_state(mean, variance), x)
            return y, tag.update(state, mean, variance, total)

        return wrap(layer, lambda inner: apply)

    return rewrite(net, replaced)


def _global_statistics(axis: Axis, x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values of each channel in all processes' `x`.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979: no difference of large squares.
    """
    own_mean, own_variance = layers.channel_statistics(x)
    own = torch.stack([own_mean, own_variance, torch.full_like(own_mean, count)])
    means, variances, counts = axis.gather(own).unbind(1)  # (processes, channels) each
    total = counts.sum(0)
    shares = counts / total
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(0), total


def _check_is_one_pass(shard_gradient: Gradient | None) -> None:
    # Micro-batches would need as many collectives in each process, and shards differ in size.
    if shard_gradient is not None:
        raise ValueError(
            "parallel.gradient: batch norm can't be synchronised over processes where "
            "shard_gradient divides each shard: leave it out, or give sync=False"
        )


def _check_is_summable(params: Params, grads: Any) -> None:
    shapes = {name: tuple(leaf.shape) for name, leaf in tree.flatten_named(params).items()}
    for name, leaf in tree.flatten_named(grads).items():
        if tuple(leaf.shape) != shapes.get(name):
            raise ValueError(
                f"parallel.gradient: shard_gradient gives {name} of shape {tuple(leaf.shape)}, "
                f"expected {shapes.get(name)}: gradients of each example can't be summed over "
                "processes; train with them in one process"
            )


def _stand_in(batch: Batch) -> Batch:
    """Return a batch of one image of zeros, like an empty batch."""
    x, labels = batch
    return x.new_zeros((1, *x.shape[1:])), labels.new_zeros((1, *labels.shape[1:]))


def _reduce(
    axis: Axis, count: int, found: tuple[Any, State, Measurements], *, of_state: bool
) -> tuple[Any, State, Measurements]:
    """Return the gradients, state and measurements of the global batch.

    `found` is of a shard of `count` examples, whose loss was weighted by `count`.
    """
    grads, state, measured = found
    if not count:  # what is counted is a stand-in
        measured = tree.map(torch.zeros_like, measured)
    local = grads, tree.map(lambda leaf: leaf * count, state) if of_state else {}, measured
    sums, total = _sum_as_one(axis, local, count)
    means = tree.map(lambda leaf, value: (value / total).to(leaf.dtype), local, sums)
    whole = tree.map(lambda leaf, value: value.to(leaf.dtype), measured, sums[2])
    return means[0], means[1] if of_state else state, whole | {"loss": means[2]["loss"]}


def _sum_as_one(axis: Axis, values: Any, count: int) -> tuple[Any, Tensor]:
    """Return the sums of `values` and `count` over the processes, in float32 or wider.

    They are sent in one dtype, and so by one all-reduce.
    """
    dtypes = (leaf.dtype for leaf in tree.leaves(values))
    widest = functools.reduce(torch.promote_types, dtypes, torch.float32)
    device = tree.leaves(values)[0].device
    local = tree.map(lambda leaf: leaf.to(widest), values)
    sums, total = axis.psum((local, torch.full((), count, dtype=widest, device=device)))
    return sums, total
