"""Training as pure functions: a step from state to state, and the loop around it.

The loop keeps nothing to itself: what it does between two steps is in the functions that it calls,
and what it knows is in the `Progress` that it yields.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from funcnets import data, losses, metrics, optim, precision, random
from funcnets.core import Layer, Params, State, check_layer
from funcnets.optim import Optimizer
from funcnets.precision import Policy

Batch = tuple[Tensor, Tensor]  # images, labels
Measurements = dict[str, Tensor]
Prepare = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N, K), labels (N,) -> 0-d


class TrainState(NamedTuple):
    """All that a training needs to go on, as one tree of tensors."""

    step: Tensor  # 0-d int64: steps done
    params: Params
    state: State
    opt_state: Any
    key: Tensor  # the training's own; a step's and an epoch's keys are folded from it


class Gradient(Protocol):
    """`gradient(net, loss, params, state, (x, labels), key=key) -> (grads, state, measurements)`.

    How a step gets the gradients that its optimizer is given, the new statistics, and the batch's
    mean `loss` and its `correct` predictions.
    """

    def __call__(  # noqa: D102
        self,
        net: Layer,
        loss: Loss,
        params: Params,
        state: State,
        batch: Batch,
        *,
        key: Tensor | None = None,
    ) -> tuple[Any, State, Measurements]: ...


class NonFiniteLoss(ArithmeticError):
    """The loss of a step is no finite number: the training diverged."""


def create(net: Layer, optimizer: Optimizer, key: Tensor, x: Tensor) -> TrainState:
    """The state before the first step, on the key's device, for inputs like `x`.

    Raises TypeError for what is no network or no optimizer.
    """
    check_layer(net, "the network")
    _check_optimizer(optimizer)
    init_key, train_key = random.split(key)
    params, state = net.init(init_key, x)
    step = torch.zeros((), dtype=torch.int64, device=key.device)
    return TrainState(step, params, state, optimizer.init(params), train_key)


def shuffle_key(train_state: TrainState) -> Tensor:
    """The key that orders the examples of every epoch, as `data.shuffle` takes it."""
    return random.split(train_state.key)[0]


def check_batch(batch: Batch) -> None:
    """Raise ValueError unless there are images, and a label for each."""
    images, labels = batch
    if labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise ValueError(
            f"the batch has images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected (N, …) and (N,), one label for each image, N ≥ 1"
        )


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"the optimizer is {optimizer!r}, expected an Optimizer: call what makes it, as in "
            "optim.sgd(0.1)"
        )


def _check_loss(loss: Any) -> None:
    if not callable(loss):
        raise TypeError(
            f"the loss is {loss!r}, expected a function of logits and labels, such as "
            "losses.cross_entropy"
        )


def _check_gradient(gradient: Any) -> None:
    try:
        inspect.signature(gradient).bind(None, None, None, None, None, key=None)
    except TypeError:
        raise TypeError(
            f"the gradient is {gradient!r}, which doesn't take (net, loss, params, state, batch, "
            "key=...): call what makes it, as in gradient=transforms.accumulate(64)"
        ) from None


def batch_gradient(
    net: Layer, loss: Loss, params: Params, state: State, batch: Batch, *, key: Tensor | None = None
) -> tuple[Params, State, Measurements]:
    """The gradient of the batch's loss in training, as `Gradient` says."""
    x, labels = batch

    def loss_of(params: Params) -> tuple[Tensor, tuple[Tensor, State]]:
        logits, new_state = net.apply(params, state, x, train=True, key=key)
        return loss(logits, labels), (logits, new_state)

    grads, (value, (logits, state)) = torch.func.grad_and_value(loss_of, has_aux=True)(params)
    return grads, state, {"loss": value, "correct": metrics.correct(logits, labels)}


def make_train_step(
    net: Layer,
    optimizer: Optimizer,
    *,
    loss: Loss = losses.cross_entropy,
    prepare: Prepare | None = None,
    policy: Policy | None = None,
    gradient: Gradient = batch_gradient,
) -> Callable[[TrainState, Batch], tuple[TrainState, Measurements]]:
    """The pure function `step(train_state, (images, labels)) -> (train_state, measurements)`.

    Measured are the batch's mean `loss` and its `correct` predictions, both before the update.

    Args:
        net: the network.
        optimizer: what makes updates of the gradients.
        loss: (logits (N, K), labels (N,)) -> 0-d.
        prepare: what is done to the images inside the step, such as `data.prepare`.
        policy: the floating types of the network; None leaves those of parameters and images.
        gradient: how the gradients are made, such as `transforms.accumulate(64)`.

    Raises TypeError where one of them is something else, such as `optim.sgd` for `optim.sgd(0.1)`;
    the step raises ValueError unless it is given images, and a label for each.
    """
    check_layer(net, "the network")
    _check_optimizer(optimizer)
    _check_loss(loss)
    _check_gradient(gradient)
    net = net if policy is None else precision.cast(net, policy)

    def step(train_state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        check_batch(batch)
        images, labels = batch
        x = images if prepare is None else prepare(images)
        key = None
        if net.stochastic:
            key = random.fold_in(random.split(train_state.key)[1], train_state.step)
        grads, state, measured = gradient(
            net, loss, train_state.params, train_state.state, (x, labels), key=key
        )
        updates, opt_state = optimizer.update(grads, train_state.opt_state, train_state.params)
        params = optim.apply_updates(train_state.params, updates)
        after = TrainState(train_state.step + 1, params, state, opt_state, train_state.key)
        return after, measured

    return step


def make_eval_step(
    net: Layer,
    *,
    loss: Loss = losses.cross_entropy,
    prepare: Prepare | None = None,
    policy: Policy | None = None,
) -> Callable[[Params, State, Batch], Measurements]:
    """The pure function `step(params, state, (images, labels)) -> measurements`, in evaluation.

    The arguments are those of `make_train_step`, and so are the errors.
    """
    check_layer(net, "the network")
    _check_loss(loss)
    net = net if policy is None else precision.cast(net, policy)

    def step(params: Params, state: State, batch: Batch) -> Measurements:
        check_batch(batch)
        images, labels = batch
        logits, _ = net.apply(params, state, images if prepare is None else prepare(images))
        return {"loss": loss(logits, labels), "correct": metrics.correct(logits, labels)}

    return step


class Place(NamedTuple):
    """Which batch of a training it is."""

    epoch: int  # counted from 0
    batch: int  # in its epoch, counted from 1
    batches: int  # batches an epoch


def stream(
    key: Tensor, batch: Batch, *, batch_size: int, epochs: int, start: int = 0
) -> Iterator[tuple[Place, Batch]]:
    """The batches of a training on `batch`, all images and labels, from step `start` on.

    The order of an epoch depends on the key (see `shuffle_key`) and the epoch alone.  The short
    last batch of an epoch is kept.
    """
    images, labels = batch
    batches = math.ceil(len(labels) / batch_size)
    first, done = divmod(start, batches)
    for epoch in range(first, epochs):
        order = data.shuffle(key, epoch, len(labels))
        for indices in data.batches(order, batch_size, start=done):
            done += 1
            yield Place(epoch, done, batches), (images[indices], labels[indices])
        done = 0


class Progress(NamedTuple):
    """Where a training stands after a step; `train_state` is good until the next is asked for."""

    train_state: TrainState
    running: metrics.Running  # averages over the epoch so far
    epoch: int  # counted from 0
    batch: int  # batches of this epoch that are done
    batches: int  # batches an epoch

    @property
    def examples(self) -> int:
        """Examples of the epoch that are done."""
        return self.running.count


def fit(
    step: Callable[[TrainState, Batch], tuple[TrainState, Measurements]],
    train_state: TrainState,
    batch: Batch,
    *,
    batch_size: int,
    epochs: int,
    running: metrics.Running | None = None,
) -> Iterator[Progress]:
    """Train on `batch`, all images and labels, and yield after each step how far it is.

    The order of an epoch depends on the key and the epoch alone, and the place in it on
    `train_state.step`: a state from the middle of an epoch, with the averages so far as `running`,
    goes on to the same bits.  Averages of a whole epoch are done with, and left out.
    The short last batch of an epoch is kept.

    Raises NonFiniteLoss after a step whose loss is no finite number.
    """
    # A step may be donated its state, so the key is kept apart.
    key, start = shuffle_key(train_state), int(train_state.step)
    for place, part in stream(key, batch, batch_size=batch_size, epochs=epochs, start=start):
        train_state, measured = step(train_state, part)
        if place.batch == 1 or running is None:
            running = metrics.Running()
        running = running.add(measured["loss"], measured["correct"], len(part[1]))
        if not math.isfinite(running.loss_sum):
            raise NonFiniteLoss(
                f"the loss is {float(measured['loss'])} at step {int(train_state.step)} (epoch "
                f"{place.epoch + 1}, batch {place.batch}): try a smaller learning rate"
            )
        yield Progress(train_state, running, *place)


def evaluate(
    step: Callable[[Params, State, Batch], Measurements],
    params: Params,
    state: State,
    batch: Batch,
    *,
    batch_size: int = 500,
) -> metrics.Running:
    """Loss and accuracy over all of `batch`, images and labels, by an evaluation step."""
    running = metrics.Running()
    everything = torch.arange(len(batch[1]), device=batch[1].device)
    for indices in data.batches(everything, batch_size):
        images, labels = (part[indices] for part in batch)
        measured = step(params, state, (images, labels))
        running = running.add(measured["loss"], measured["correct"], len(indices))
    return running
