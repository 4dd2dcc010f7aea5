"""Ensembles: the trainings of several members as one, by `vmap` over their stacked states.

Members are of one network and see the same batches, or each its own.  All else is theirs alone:
parameters, statistics, dropout, the optimizer's memory and, if it is `rated`, the learning rate.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from funcnets import metrics, train, tree
from funcnets.compiler import Jitted, jit
from funcnets.compiler.backends.select import Backend, usual_backend
from funcnets.core import Layer, Params, State
from funcnets.optim import Optimizer
from funcnets.train import Batch, Measurements, NonFiniteLoss, TrainState
from funcnets.transforms import vmap_cost

Step = Callable[[TrainState, Batch], tuple[TrainState, Measurements]]


class RateState(NamedTuple):
    """Memory of a `rated` optimizer."""

    rate: Tensor  # 0-d float64, or (M,) when stacked
    inner: Any  # of the optimizer made with the rate


def rated(make: Callable[[Any], Optimizer], rate: float | Tensor) -> Optimizer:
    """The optimizer `make(rate)`, whose rate is in its state: data, not a constant of the graph.

    So members of an ensemble can have a rate each.  `rated(optim.sgd, 0.1)`, or with a schedule
    `rated(lambda rate: optim.sgd(optim.linear(rate, 1000)), 0.1)`.

    Raises TypeError for an optimizer that is made already.
    """
    if isinstance(make, Optimizer):
        raise TypeError(
            "rated: got an optimizer, expected what makes one of a rate: "
            "optim.sgd, or lambda rate: optim.sgd(rate, momentum=0.9)"
        )

    def init(params: Any) -> RateState:
        inner = make(rate).init(params)
        device = next((leaf.device for leaf in tree.leaves(params)), None)
        return RateState(torch.as_tensor(rate, dtype=torch.float64, device=device), inner)

    def update(grads: Any, state: RateState, params: Any) -> tuple[Any, RateState]:
        if not isinstance(state, RateState):
            raise ValueError(
                f"the optimizer is rated and its state is {type(state).__name__}, expected "
                "RateState: create the members with the optimizer that trains them"
            )
        updates, inner = make(state.rate).update(grads, state.inner, params)
        return updates, RateState(state.rate, inner)

    return Optimizer(init, update, is_whole=True)


def create(
    net: Layer, optimizer: Optimizer, keys: Tensor, x: Tensor, rates: Tensor | None = None
) -> TrainState:
    """The stacked states of M members before the first step: each leaf has a first axis more.

    Member i is `train.create(net, optimizer, keys[i], x)`, bit for bit.

    Args:
        net: the network of all members.
        optimizer: the optimizer of all members; `rated`, if they have a rate each.
        keys: (M, 2), a key for each member, as `random.split(key, M)` gives them.
        x: an example batch, as `net.init` takes it.
        rates: (M,) floating, a learning rate for each member.

    Raises ValueError for another shape of `keys` or `rates`, or rates without `rated`.
    """
    if not isinstance(keys, Tensor) or keys.ndim != 2:
        kind = type(keys).__name__
        given = f"shape {tuple(keys.shape)}" if isinstance(keys, Tensor) else f"the type {kind}"
        raise ValueError(
            f"keys have {given}, expected a tensor of shape (members, 2): "
            "give a key for each member, as funcnets.random.split(key, members)"
        )
    members = stack([train.create(net, optimizer, key, x) for key in keys])
    return members if rates is None else _with_rates(members, rates)


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
    """One tree of the members' trees, all of one structure: each leaf gets a first axis, (M, …).

    Raises ValueError, by the leaf's name, where a member differs from the first in its leaves,
    their shapes, dtypes or devices.
    """
    if not members:
        raise ValueError("no members to stack: give at least one")
    for index, member in enumerate(members):
        if found := tree.difference(member, members[0]):
            name, ours, theirs = found
            raise ValueError(
                f"{name}: {ours} in member {index}, and {theirs} in member 0: "
                "members of an ensemble are of one network, dtype and device"
            )
    return tree.transpose(members)


def unstack(members: Any) -> list[Any]:
    """The members' own trees, the inverse of `stack`; views, which a donated step writes into."""
    leaves, structure = tree.flatten(members)
    return [
        tree.unflatten(one, structure)
        for one in zip(*(leaf.unbind() for leaf in leaves), strict=True)
    ]


def make_ensemble_step(step: Step, *, shared_batch: bool = True) -> Step:
    """A member's training step as the step of all: stacked states in and out, (M,) measurements.

    It gives what `step` gives for each member by itself, up to rounding.  `jit_step` compiles it.

    Args:
        step: `step(train_state, batch)` of one member, as `train.make_train_step` makes it.
        shared_batch: whether members see one batch; else its parts have a first axis more, (M, …).

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
            "make the state of all members by ensemble.create or ensemble.stack"
        )
    count, length = len(members.step), len(batch[1])
    if not shared_batch and length != count:
        raise ValueError(
            f"the batch's first axis has length {length}, expected {count}, one batch for each "
            "member: stack them by ensemble.stack, or leave shared_batch=True"
        )


Way = Literal["vmap", "loop"]

# Multiply-adds of a member in grouped convolutions, an operation of the step, above which `loop` is
# faster.  Measured as the speed of vmap, in times the loop's, one thread, oneDNN with AVX2:
# - as a graph, 4 members: a LeNet with batch norm 1.35, 1.00, 0.81 and 0.72 at 2,300, 9,200, 18,400
#   and 36,900 of them (batch 16, 64, 128 and 256), residual networks 1.27, 1.24 and 0.97 at 8,200,
#   16,300 and 65,200;
# - compiled, where larger tensors cost less: the LeNet 1.31, 1.13 and 1.06 at 18,400, 36,900 and
#   73,700, residual networks of 2 members 1.15 and 0.90 at 8,200 and 65,200.
# Native runs the same convolutions as a graph, and was not measured by itself.
MOST_GROUPED_WORK: dict[Backend, int] = {
    "native": 17_000,
    "graph": 17_000,
    "inductor": 50_000,
}


def faster(
    step: Step,
    members: TrainState,
    batch: Batch,
    *,
    shared_batch: bool = True,
    backend: Backend | None = None,
) -> Way:
    """The way in which `jit_step` should be faster for these shapes, by a rule: no clock is read.

    `vmap` does each operation once for all members, which wins while operations are small; it
    makes grouped convolutions, which are slower than the members' own, and lose where those are
    most of the work.  The arguments are those of `jit_step` and its result.
    """
    mapped = make_ensemble_step(step, shared_batch=shared_batch)
    operations, multiply_adds = vmap_cost.work(mapped, members, batch)
    most = MOST_GROUPED_WORK[backend or usual_backend(members.step.device)]
    return "loop" if multiply_adds > most * operations * len(members.step) else "vmap"


def jit_step(
    step: Step,
    *,
    by: Way | Literal["auto"] = "auto",
    shared_batch: bool = True,
    donate_argnums: int | Sequence[int] = (),
    backend: Backend | None = None,
    saved_as: str | None = None,
    tf32: bool = False,
) -> Step:
    """`make_ensemble_step(step)` under `jit`, by the faster of two ways to the same numbers.

    - `vmap`: one graph of all members.  The convolutions of all are one, of a group for each.
    - `loop`: the graph of one member, called for each.  Donated, it writes the new state into the
      member's rows of the stacked one.
    - `auto`: what `faster` says for the shapes of a call.

    Args:
        step, shared_batch: as `make_ensemble_step` takes them.
        by: the way.
        donate_argnums: 0, if the new state may take the memory of the old, as in `jit`.
        backend, saved_as, tf32: as in `jit`.

    Raises ValueError for another way or other arguments to donate, and, from a call, what `jit`
    and `make_ensemble_step` raise.
    """
    if by not in ("auto", *get_args(Way)):
        raise ValueError(f"by is {by!r}; expected auto, {' or '.join(get_args(Way))}")
    if donate_argnums not in (0, (), (0,), [0], []):
        raise ValueError(
            f"donate_argnums is {donate_argnums!r}; expected 0, the members' state: a batch is "
            "read by one member after another"
        )

    def jitted(way: Way, function: Step) -> Jitted:
        name = saved_as and f"{saved_as}, {way}, {shared_batch=}"
        return jit(
            function,
            donate_argnums=donate_argnums,
            backend=backend,
            saved_as=name,
            tf32=tf32,
        )

    vmapped = jitted("vmap", make_ensemble_step(step, shared_batch=shared_batch))
    looped = _loop(jitted("loop", step), shared_batch)
    ways: dict[str, Step] = {"vmap": vmapped, "loop": looped}
    chosen: dict[Any, Way] = {}

    def ensemble_step(members: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        if by != "auto":
            return ways[by](members, batch)
        _check_stacked(members, batch, shared_batch)
        shapes = (members.step.shape, *(part.shape for part in batch))
        if shapes not in chosen:
            chosen[shapes] = faster(
                step, members, batch, shared_batch=shared_batch, backend=backend
            )
        return ways[chosen[shapes]](members, batch)

    return ensemble_step


def _loop(step: Jitted, shared_batch: bool) -> Step:
    """The step of all members, by a jitted step of one."""

    def ensemble_step(members: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        _check_stacked(members, batch, shared_batch)
        if step.donate_argnums:
            _check_apart(members)
        each = unstack(members)
        batches = [batch] * len(each) if shared_batch else unstack(batch)
        results = [step(*arguments) for arguments in zip(each, batches, strict=True)]
        after, measured = zip(*results, strict=True)
        rows = zip(tree.leaves(each), tree.leaves(after), strict=True)
        in_place = all(row is written for row, written in rows)
        return members if in_place else tree.transpose(after), tree.transpose(measured)

    return ensemble_step


def _check_apart(members: TrainState) -> None:
    if any(leaf.stride(0) == 0 and len(leaf) > 1 for leaf in tree.leaves(members)):
        shared = [n for n, leaf in tree.flatten_named(members).items() if leaf.stride(0) == 0]
        raise ValueError(
            f"the members share the memory of {tree.listed(shared)}, which is donated: "
            "clone what was expanded, or don't donate"
        )


def member_logits(net: Layer, params: Params, state: State, x: Tensor) -> Tensor:
    """What each member says of the same batch, in evaluation: (N, …) -> (M, N, K).

    Raises ValueError, by the leaf's name, where the leaves aren't stacked, a row for each member.
    """
    rows = {
        name: leaf.shape[0] if leaf.ndim else None
        for name, leaf in tree.flatten_named((params, state)).items()
    }
    if len({*rows.values()}) > 1 or None in rows.values():
        given = tree.listed([f"{name[2:]} {count}" for name, count in rows.items()], 3)
        raise ValueError(
            f"the leaves have other first axes: {given}; expected one of the same length, a row "
            "for each member: stack members by ensemble.stack, or call net.apply for one"
        )
    return torch.func.vmap(lambda params, state: net.apply(params, state, x)[0])(params, state)


def combine_logits(logits: Tensor) -> Tensor:
    """The ensemble's prediction, (M, N, K) -> (N, K): logs of the members' mean probabilities.

    Its softmax is that mean, so that losses and metrics take it as they take any logits.
    Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles, 2017, section 2.4.

    Raises ValueError for another rank.
    """
    if logits.ndim != 3:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, expected (members, N, K): what "
            "ensemble.member_logits gives"
        )
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


class Progress(NamedTuple):
    """Where the training of all members stands after a step."""

    train_state: TrainState  # good until the next is asked for
    running: tuple[metrics.Running, ...]  # averages over the epoch so far, a member each
    epoch: int  # counted from 0
    batch: int  # batches of this epoch that are done
    batches: int  # batches an epoch

    @property
    def examples(self) -> int:
        """Examples of the epoch that are done, by each member."""
        return self.running[0].count


def fit(
    step: Step,
    members: TrainState,
    batch: Batch,
    *,
    batch_size: int,
    epochs: int,
    running: Sequence[metrics.Running] = (),
) -> Iterator[Progress]:
    """As `train.fit`, for all members at once, on batches in the order of the first member's key.

    A member whose loss is no finite number goes on beside the others, whom it doesn't touch.

    Raises NonFiniteLoss after a step that leaves no member with a finite loss.
    """
    first = unstack(members)[0]
    # A step may be donated the state, so the key is kept apart.
    key, start = train.shuffle_key(first), int(first.step)
    for place, part in train.stream(key, batch, batch_size=batch_size, epochs=epochs, start=start):
        if place.batch == 1 or not running:
            running = (metrics.Running(),) * len(members.step)
        members, measured = step(members, part)
        columns = (measured["loss"].tolist(), measured["correct"].tolist())
        running = tuple(
            before.add(loss, correct, len(part[1]))
            for before, loss, correct in zip(running, *columns, strict=True)
        )
        if not any(math.isfinite(member.loss_sum) for member in running):
            raise NonFiniteLoss(
                f"no member has a finite loss after epoch {place.epoch + 1}, batch {place.batch}: "
                "try smaller learning rates"
            )
        yield Progress(members, tuple(running), *place)
