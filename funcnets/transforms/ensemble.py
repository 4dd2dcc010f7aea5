"""Ensembles: several networks trained in one step, by `vmap` over their stacked states.

The members have the same architecture, and are trained on the same batches or on batches of their
own.  Each has its own parameters, running statistics, dropout masks, optimizer state and, with a
`rated` optimizer, learning rate.  In stacked trees each leaf has a first axis of length M, the
number of members.

>>> import torch
>>> from funcnets import layers, optim, random, train
>>> from funcnets.transforms import ensemble
>>> net, optimizer = layers.linear(3), ensemble.rated(optim.sgd, 0.1)
>>> keys, rates = random.split(random.key(0), 4), torch.tensor([0.01, 0.1, 0.5, 1.0])
>>> images, labels = torch.ones(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
>>> members = ensemble.create(net, optimizer, keys, images, rates)
>>> step = ensemble.make_ensemble_step(train.make_train_step(net, optimizer))
>>> members, measurements = step(members, (images, labels))  # ensemble.jit_step compiles it
>>> measurements["loss"].shape, members.params["weight"].shape
(torch.Size([4]), torch.Size([4, 3, 5]))
>>> logits = ensemble.member_logits(net, members.params, members.state, images)
>>> ensemble.combine_logits(logits).shape
torch.Size([6, 3])
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from funcnets import metrics, train, tree
from funcnets.compiler import Jitted, jit
from funcnets.compiler.backends.select import Backend, usual_backend
from funcnets.core import Layer, Params, State
from funcnets.optim import Optimizer
from funcnets.optim.rated import RateState, rated
from funcnets.train import Batch, Measurements, NonFiniteLoss, TrainState, TrainStep
from funcnets.transforms import vmap_cost

__all__ = [
    "Progress",
    "RateState",
    "Strategy",
    "choose_strategy",
    "combine_logits",
    "create",
    "fit",
    "jit_step",
    "make_ensemble_step",
    "member_logits",
    "rated",
    "stack",
    "unstack",
]


def create(
    net: Layer, optimizer: Optimizer, keys: Tensor, x: Tensor, rates: Tensor | None = None
) -> TrainState:
    """Return the stacked states of M members before the first step.

    Member i is `train.create(net, optimizer, keys[i], x)`, bit for bit.

    Args:
        net: the network of all members.
        optimizer: the optimizer of all members; `rated` if `rates` are given.
        keys: (M, 2), a key for each member, as `random.split(key, M)` returns them.
        x: an example batch, as `net.init` takes it.
        rates: (M,) floating, a learning rate for each member.

    Raises ValueError for another shape of `keys` or `rates`, rates without `rated`, or members that
    are equal although their keys differ.

    >>> import torch
    >>> from funcnets import layers, optim, random
    >>> from funcnets.transforms import ensemble
    >>> keys, x = random.split(random.key(0), 4), torch.empty(1, 5, device="meta")
    >>> members = ensemble.create(layers.linear(3), optim.sgd(0.1), keys, x)
    >>> members.params["weight"].shape
    torch.Size([4, 3, 5])
    """
    if not isinstance(keys, Tensor) or keys.ndim != 2:
        kind = type(keys).__name__
        given = f"shape {tuple(keys.shape)}" if isinstance(keys, Tensor) else f"the type {kind}"
        raise ValueError(
            f"keys have {given}, expected a tensor of shape (members, 2): "
            "give a key for each member, as funcnets.random.split(key, members)"
        )
    members = stack([train.create(net, optimizer, key, x) for key in keys])
    _check_distinct(keys, tree.leaves(members.params))
    return members if rates is None else _with_rates(members, rates)


def _check_distinct(keys: Tensor, params: Sequence[Tensor]) -> None:
    """Raise ValueError for a member that equals the first one, and has another key."""
    if keys.is_meta or not params:
        return
    same = (keys != keys[0]).any(1)
    for leaf in params:
        if not same.any():
            return
        same = same & (leaf == leaf[0]).flatten(1).all(1)
    if same.any():
        raise ValueError(
            f"members 0 and {int(same.nonzero()[0])} have different keys and equal parameters: "
            "init ignores its key, as that of a lifted module does; lift a function that makes the "
            "module, or, to begin with equal members, use ensemble.stack"
        )


def _with_rates(members: TrainState, rates: Tensor) -> TrainState:
    count = len(members.step)
    rates = torch.as_tensor(rates)
    if rates.shape != (count,) or not rates.is_floating_point():
        raise ValueError(
            f"rates are {rates.dtype} of shape {tuple(rates.shape)}, expected floating of shape "
            f"({count},): one learning rate for each of the {count} keys"
        )
    if not isinstance(members.opt_state, RateState):
        raise ValueError(
            "rates were given, and the optimizer has a rate of its own: "
            "make it rated(optim.sgd, 0.1), which keeps the rate in its state"
        )
    return members._replace(
        opt_state=members.opt_state._replace(rate=rates.to(members.opt_state.rate))
    )


def stack(members: Sequence[Any]) -> Any:
    """Return one tree of the members' trees, with leaves (M, …).

    Raises ValueError, with the name of the leaf, if a member differs from the first in its leaves,
    their shapes, dtypes or devices.

    >>> import torch
    >>> from funcnets.transforms import ensemble
    >>> ensemble.stack([{"bias": torch.zeros(2)}, {"bias": torch.ones(2)}])
    {'bias': tensor([[0., 0.],
            [1., 1.]])}
    """
    if not members:
        raise ValueError("no members to stack: give at least one")
    for index, member in enumerate(members):
        if found := tree.difference(member, members[0]):
            name, ours, theirs = found
            raise ValueError(
                f"{name}: {ours} in member {index}, and {theirs} in member 0: members of an "
                "ensemble have the same network, dtypes and device"
            )
    return tree.transpose(members)


def unstack(members: Any) -> list[Any]:
    """Return the members' own trees, the inverse of `stack`.

    Their leaves are views of the stacked tree, which a donated step writes into.
    """
    leaves, structure = tree.flatten(members)
    return [
        tree.unflatten(one, structure)
        for one in zip(*(leaf.unbind() for leaf in leaves), strict=True)
    ]


def make_ensemble_step(step: TrainStep, *, shared_batch: bool = True) -> TrainStep:
    """Return the step of all members: stacked states in and out, measurements (M,).

    It gives what `step` gives for each member by itself, up to rounding.  `jit_step` compiles it.

    Args:
        step: the step of one member, as `train.make_train_step` makes it.
        shared_batch: True if all members are given the same batch; otherwise images and labels
            are stacked, (M, …).

    Raises ValueError, from a call, for a state that isn't stacked, or batches that aren't.
    """
    mapped = torch.func.vmap(step, in_dims=(0, None if shared_batch else 0))

    def ensemble_step(members: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        _check_stacked(members, batch, shared_batch)
        return mapped(members, batch)

    return ensemble_step


def _check_stacked(members: TrainState, batch: Batch, shared_batch: bool) -> None:
    if not isinstance(members, TrainState) or members.step.ndim != 1:
        given = f"of type {type(members).__name__}"
        if isinstance(members, TrainState):
            given = f"one whose step has shape {tuple(members.step.shape)}"
        raise ValueError(
            f"the state is {given}, expected a TrainState whose step has shape (members,): "
            "make it by ensemble.create or ensemble.stack"
        )
    count, length = len(members.step), len(batch[1])
    if not shared_batch and length != count:
        raise ValueError(
            f"the batch's first axis has length {length}, expected {count}, one batch for each "
            "member: stack them by ensemble.stack, or leave shared_batch=True"
        )


Strategy = Literal["vmap", "loop"]

# The most multiply-adds of a member in grouped convolutions, per operation of the step, up to which
# `vmap` is chosen.  Measured speed of `vmap` relative to `loop`, one thread, oneDNN with AVX2:
# - as a graph, 4 members: a LeNet with batch norm 1.35, 1.00, 0.81 and 0.72 at 2,300, 9,200, 18,400
#   and 36,900 multiply-adds (batch 16, 64, 128 and 256), residual networks 1.27, 1.24 and 0.97 at
#   8,200, 16,300 and 65,200;
# - compiled, where larger tensors cost less: the LeNet 1.31, 1.13 and 1.06 at 18,400, 36,900 and
#   73,700, residual networks of 2 members 1.15 and 0.90 at 8,200 and 65,200.
# The native back end runs the same convolutions as a graph, and was not measured by itself.
MOST_MULTIPLY_ADDS_PER_OPERATION: dict[Backend, int] = {
    "native": 17_000,
    "graph": 17_000,
    "inductor": 50_000,
}


def choose_strategy(
    step: TrainStep,
    members: TrainState,
    batch: Batch,
    *,
    shared_batch: bool = True,
    backend: Backend | None = None,
) -> Strategy:
    """Return the strategy of `jit_step` that should be faster for these shapes.

    The choice follows a rule on shapes; nothing is timed.  `vmap` runs each operation once for all
    members, which is faster while operations are small.  But it turns convolutions into grouped
    ones, which are slower than one convolution for each member, so `loop` is faster where most of
    the work is in convolutions.  The arguments are those of `jit_step` and of its result.
    """
    mapped = make_ensemble_step(step, shared_batch=shared_batch)
    operations, multiply_adds = vmap_cost.count_cost(mapped, members, batch)
    most = MOST_MULTIPLY_ADDS_PER_OPERATION[backend or usual_backend(members.step.device)]
    return "loop" if multiply_adds > most * operations * len(members.step) else "vmap"


def jit_step(
    step: TrainStep,
    *,
    by: Strategy | Literal["auto"] = "auto",
    shared_batch: bool = True,
    donate_argnums: int | Sequence[int] = (),
    backend: Backend | None = None,
    saved_as: str | None = None,
    tf32: bool = False,
    deterministic: bool = False,
) -> TrainStep:
    """Return `make_ensemble_step(step)` compiled by `jit`, by the faster of two strategies.

    Both give the same numbers, up to rounding:

    - `vmap`: one graph for all members, whose convolutions are grouped, a group for each member.
    - `loop`: the graph of one member, called for each.  With a donated state it writes the new
      state into the rows of the stacked tree.

    Args:
        step, shared_batch: as `make_ensemble_step` takes them.
        by: the strategy; `auto` is what `choose_strategy` returns for the shapes of a call.
        donate_argnums: 0 if the new state may take the memory of the old, as in `jit`.
        backend, saved_as, tf32, deterministic: as in `jit`.

    Raises ValueError for another strategy or other arguments to donate, and, from a call, what
    `jit` and `make_ensemble_step` raise.

    >>> import torch
    >>> from funcnets import layers, optim, random, train
    >>> from funcnets.transforms import ensemble
    >>> net, optimizer = layers.linear(3), optim.sgd(0.1)
    >>> images, labels = torch.ones(2, 5), torch.tensor([0, 1])
    >>> members = ensemble.create(net, optimizer, random.split(random.key(0), 4), images)
    >>> step = train.make_train_step(net, optimizer)
    >>> jitted = ensemble.jit_step(step, donate_argnums=0, backend="graph")
    >>> members, measurements = jitted(members, (images, labels))
    >>> measurements["loss"].shape
    torch.Size([4])
    """
    _check_options(by, donate_argnums)

    def jitted(
        strategy: Strategy, function: TrainStep
    ) -> Jitted[..., tuple[TrainState, Measurements]]:
        return jit(
            function,
            donate_argnums=donate_argnums,
            backend=backend,
            saved_as=saved_as and f"{saved_as}, {strategy}, {shared_batch=}",
            tf32=tf32,
            deterministic=deterministic,
        )

    looped = _loop(jitted("loop", step), shared_batch, donate_argnums in (0, (0,), [0]))
    strategies: dict[str, TrainStep] = {
        "vmap": jitted("vmap", make_ensemble_step(step, shared_batch=shared_batch)),
        "loop": looped,
    }
    chosen: dict[Any, Strategy] = {}  # by the shapes of a call

    def ensemble_step(members: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        if by != "auto":
            return strategies[by](members, batch)
        _check_stacked(members, batch, shared_batch)
        shapes = (members.step.shape, *(part.shape for part in batch))
        if shapes not in chosen:
            chosen[shapes] = choose_strategy(
                step, members, batch, shared_batch=shared_batch, backend=backend
            )
        return strategies[chosen[shapes]](members, batch)

    return ensemble_step


def _check_options(by: str, donate_argnums: int | Sequence[int]) -> None:
    if by not in ("auto", *get_args(Strategy)):
        raise ValueError(f"by is {by!r}; expected auto, {' or '.join(get_args(Strategy))}")
    if donate_argnums not in (0, (), (0,), [0], []):
        raise ValueError(
            f"donate_argnums is {donate_argnums!r}; expected 0, the members' state: a batch is "
            "read by all members in turn, so it can't be donated"
        )


def _loop(step: TrainStep, shared_batch: bool, is_donated: bool) -> TrainStep:
    """Return the step of all members that calls the jitted step of one for each."""

    def ensemble_step(members: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        _check_stacked(members, batch, shared_batch)
        if is_donated:
            _check_not_expanded(members)
        each = unstack(members)
        batches = [batch] * len(each) if shared_batch else unstack(batch)
        results = [step(*arguments) for arguments in zip(each, batches, strict=True)]
        after, measured = zip(*results, strict=True)
        rows = zip(tree.leaves(each), tree.leaves(after), strict=True)
        in_place = all(row is written for row, written in rows)
        return members if in_place else tree.transpose(after), tree.transpose(measured)

    return ensemble_step


def _check_not_expanded(members: TrainState) -> None:
    if any(leaf.stride(0) == 0 and len(leaf) > 1 for leaf in tree.leaves(members)):
        shared = [n for n, leaf in tree.flatten_named(members).items() if leaf.stride(0) == 0]
        raise ValueError(
            f"the members share the memory of {tree.listed(shared)}, which is donated: "
            "clone the expanded tensors, or don't donate"
        )


def member_logits(net: Layer, params: Params, state: State, x: Tensor) -> Tensor:
    """Return the logits of each member for the same batch, in evaluation: (N, …) -> (M, N, K).

    Raises ValueError, with the names of leaves, unless all leaves are stacked, with a row for each
    member.
    """
    rows = {
        name: leaf.shape[0] if leaf.ndim else None
        for name, leaf in tree.flatten_named((params, state)).items()
    }
    if len({*rows.values()}) > 1 or None in rows.values():
        given = tree.listed([f"{name[2:]} {count}" for name, count in rows.items()], 3)
        raise ValueError(
            f"the leaves have first axes of different lengths: {given}; expected a row for each "
            "member: stack members by ensemble.stack, or call net.apply for one"
        )
    return torch.func.vmap(lambda params, state: net.apply(params, state, x)[0])(params, state)


def combine_logits(logits: Tensor) -> Tensor:
    """Return the ensemble's logits, (M, N, K) -> (N, K): logs of the members' mean probabilities.

    Their softmax is that mean, so that losses and metrics take them as any other logits.
    Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep
    ensembles", 2017, section 2.4.

    Raises ValueError for another rank.
    """
    if logits.ndim != 3:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, expected (members, N, K), as "
            "ensemble.member_logits returns them"
        )
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


Averages = tuple[metrics.Running, ...]  # of each member
Progress = train.Progress[Averages]


def fit(
    step: TrainStep,
    members: TrainState,
    batch: Batch,
    *,
    batch_size: int,
    epochs: int,
    running: Sequence[metrics.Running] = (),
) -> Iterator[Progress]:
    """Train all members at once, as `train.fit`, in the order of the first member's key.

    `running` are the averages of each member's epoch so far, where a training is resumed.  A member
    whose loss isn't a finite number goes on, and doesn't change the others.

    Raises NonFiniteLoss after a step that leaves no member with a finite loss.
    """
    first = unstack(members)[0]
    # The key is read before the first step, to which the state may be donated.
    key, start = train.shuffle_key(first), int(first.step)
    parts = train.shuffled_batches(key, batch, batch_size=batch_size, epochs=epochs, start=start)
    nothing: Averages = (metrics.Running(),) * len(members.step)
    before = tuple(running) or nothing
    return train.run_steps(step, members, parts, before, nothing, before[0].count, _add)


def _add(
    before: Averages, numbers: metrics.Numbers, count: int, position: train.Position
) -> Averages:
    """Return the averages with one more batch.  Raises NonFiniteLoss if none has a finite loss."""
    losses, *correct = numbers
    counts = map(int, correct[0]) if correct else itertools.repeat(None)
    members = zip(before, losses, counts, strict=False)
    after = tuple(averages.add(loss, right, count) for averages, loss, right in members)
    if not any(math.isfinite(member.loss_sum) for member in after):
        raise NonFiniteLoss(
            f"no member has a finite loss after epoch {position.epoch + 1}, batch "
            f"{position.batch}: try smaller learning rates"
        )
    return after
