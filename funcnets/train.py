"""Training as pure functions: a step from state to state, and the loop around it.

The loop has no hidden state: everything that it knows is in the `Progress` that it yields.

>>> import torch
>>> from funcnets import layers, optim, random, train
>>> images, labels = torch.eye(6), torch.tensor([0, 1, 2, 0, 1, 2])
>>> net, optimizer = layers.linear(3), optim.sgd(1.0)
>>> train_state = train.create(net, optimizer, random.key(0), images)
>>> step = train.make_train_step(net, optimizer)  # funcnets.jit(step) compiles it
>>> for progress in train.fit(step, train_state, (images, labels), batch_size=2, epochs=20):
...     train_state = progress.train_state
>>> progress.epoch, progress.batch, progress.batches
(19, 3, 3)
>>> eval_step = train.make_eval_step(net)
>>> train.evaluate(eval_step, train_state.params, train_state.state, (images, labels)).accuracy
1.0
"""

import inspect
import math
import reprlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from funcnets import data, losses, metrics, optim, precision, random
from funcnets._validate import check, is_whole
from funcnets.core import Layer, Params, State, check_layer
from funcnets.optim import Optimizer
from funcnets.optim.transformations import check_optimizer
from funcnets.precision import Policy

Batch = tuple[Tensor, Tensor]  # images (N, …), and labels (N, …): class numbers or other targets
Measurements = dict[str, Tensor]
Prepare = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (N, …), labels (N, …) -> mean, 0-d


class TrainState(NamedTuple):
    """Everything that a training needs to continue, as one tree of tensors."""

    step: Tensor  # int64, 0-d: steps done so far
    params: Params
    state: State  # running statistics of batch norms
    opt_state: Any
    key: Tensor  # int32, (2,); the keys of steps and epochs are derived from it


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Measurements]]
EvalStep = Callable[[Params, State, Batch], Measurements]


class Gradient(Protocol):
    """`gradient(net, loss, params, state, (x, labels), key=key) -> (grads, state, measurements)`.

    Computes the gradients for the optimizer, the new running statistics, and the measurements of
    the batch: its mean `loss` (0-d) and its number of `correct` predictions (0-d int64), see
    `metrics.measure`.  It refuses a batch that must not be empty, as `check_batch` does.
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
    """The loss of a step isn't a finite number: the training diverged."""


def create(net: Layer, optimizer: Optimizer, key: Tensor, x: Tensor) -> TrainState:
    """Return the state before the first step, on the device of the key.

    Args:
        net: the network.
        optimizer: as in `make_train_step`.
        key: (2,); initial parameters, dropout and the order of examples are derived from it.
        x: an example batch; only its shape and dtype are read, so a meta tensor will do.

    Raises TypeError for another type of network or optimizer.

    >>> import torch
    >>> from funcnets import layers, optim, random, train, tree
    >>> x = torch.empty(1, 5, device="meta")
    >>> train_state = train.create(layers.linear(3), optim.sgd(0.1), random.key(0), x)
    >>> int(train_state.step), sorted(train_state.params)
    (0, ['bias', 'weight'])
    """
    check_layer(net, "the network")
    check_optimizer("the optimizer", optimizer)
    init_key, train_key = random.split(key)
    params, state = net.init(init_key, x)
    step = torch.zeros((), dtype=torch.int64, device=key.device)
    return TrainState(step, params, state, optimizer.init(params), train_key)


def shuffle_key(train_state: TrainState) -> Tensor:
    """Return the key for `data.shuffle`, which orders the examples of every epoch."""
    return random.split(train_state.key)[0]


def check_batch(batch: Batch, *, least: int = 1) -> None:
    """Raise TypeError or ValueError unless the batch has images, and a label for each.

    Labels of any shape and type that begins with N pass: the loss decides what labels are.
    `least` is the number of images below which a batch is refused.
    """
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not is_pair or not all(isinstance(part, Tensor) for part in batch):
        raise TypeError(
            f"the batch is {reprlib.repr(batch)}; expected two tensors, (images, labels): from a "
            'dict pass (batch["image"], batch["label"])'
        )
    images, labels = batch
    has_dimensions = images.ndim and labels.ndim
    if not has_dimensions or len(images) != len(labels) or len(labels) < least:
        raise ValueError(
            f"the batch has images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected (N, …) and (N, …), one label for each image, N ≥ 1"
        )


def _prepared(images: Tensor, prepare: Prepare | None) -> Tensor:
    """Return the inputs of the network, which must be floating: bytes aren't taken for pixels."""
    x = images if prepare is None else prepare(images)
    precision.check_images(x)
    return x


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
            "key=...): call the function that makes one, as in gradient=transforms.accumulate(64)"
        ) from None


def batch_gradient(
    net: Layer, loss: Loss, params: Params, state: State, batch: Batch, *, key: Tensor | None = None
) -> tuple[Params, State, Measurements]:
    """Return the gradient of the batch's mean loss; arguments and results are `Gradient`'s."""
    check_batch(batch)
    x, labels = batch

    def loss_of(params: Params) -> tuple[Tensor, tuple[Tensor, State]]:
        logits, new_state = net.apply(params, state, x, train=True, key=key)
        return loss(logits, labels), (logits, new_state)

    grads, (value, (logits, state)) = torch.func.grad_and_value(loss_of, has_aux=True)(params)
    return grads, state, metrics.measure(value, logits, labels)


def make_train_step(
    net: Layer,
    optimizer: Optimizer,
    *,
    loss: Loss = losses.cross_entropy,
    prepare: Prepare | None = None,
    policy: Policy | None = None,
    gradient: Gradient = batch_gradient,
) -> TrainStep:
    """Return the pure function `step(train_state, batch) -> (train_state, measurements)`.

    A batch is (images (N, …), labels (N, …)).  The loss decides what labels are: class numbers
    (N,), probabilities (N, K), or the targets of a regression.  The measurements are its mean
    `loss` and its number of `correct` predictions, both before the update.  Labels that are neither
    class numbers nor of the shape of logits (N, K) have no `correct`; for a regression to K numbers
    it counts the rows in which output and target have their maximum at the same place.

    Args:
        net: the network.
        optimizer: turns gradients into updates, such as `optim.sgd(0.1)`.
        loss: (outputs (N, …), labels (N, …)) -> 0-d, the mean over the examples.
        prepare: applied to the images inside the step, such as
            `functools.partial(data.prepare, side=28)`.
        policy: the dtypes of the network; None keeps those of parameters and images.
        gradient: computes the gradients, such as `transforms.accumulate(64)`.

    Raises TypeError for an argument of another type, such as `optim.sgd` for `optim.sgd(0.1)`;
    the step raises ValueError for a batch without images, or without a label for each.  A batch may
    be empty with `gradient=transforms.per_example("frozen")`, see there.

    >>> import torch
    >>> from funcnets import layers, optim, random, train
    >>> net, optimizer = layers.linear(3), optim.sgd(0.1)
    >>> step = train.make_train_step(net, optimizer)
    >>> train_state = train.create(net, optimizer, random.key(0), torch.zeros(4, 5))
    >>> batch = (torch.zeros(4, 5), torch.tensor([0, 1, 2, 0]))
    >>> train_state, measurements = step(train_state, batch)
    >>> int(train_state.step), sorted(measurements)
    (1, ['correct', 'loss'])
    """
    check_layer(net, "the network")
    check_optimizer("the optimizer", optimizer)
    _check_loss(loss)
    _check_gradient(gradient)
    net = net if policy is None else precision.cast(net, policy)

    def step(train_state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        check_batch(batch, least=0)  # whether a batch may be empty is the gradient's matter
        images, labels = batch
        x = _prepared(images, prepare)
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
) -> EvalStep:
    """Return the pure function `step(params, state, batch) -> measurements`.

    The network is in evaluation mode.  Arguments and errors are those of `make_train_step`.
    """
    check_layer(net, "the network")
    _check_loss(loss)
    net = net if policy is None else precision.cast(net, policy)

    def step(params: Params, state: State, batch: Batch) -> Measurements:
        check_batch(batch)
        images, labels = batch
        logits, _ = net.apply(params, state, _prepared(images, prepare))
        return metrics.measure(loss(logits, labels), logits, labels)

    return step


class Position(NamedTuple):
    """The place of a batch in a training."""

    epoch: int  # counted from 0
    batch: int  # within its epoch, counted from 1
    batches: int  # per epoch


def shuffled_batches(
    key: Tensor,
    batch: Batch,
    *,
    batch_size: int,
    epochs: int,
    start: int = 0,
    drop_last: bool = False,
) -> Iterator[tuple[Position, Batch]]:
    """Yield the batches of a training on `batch`, all images and labels, from step `start` on.

    The order of an epoch depends on the key (see `shuffle_key`) and the epoch alone.  The short
    last batch of an epoch is kept, unless `drop_last` is True.

    Raises TypeError or ValueError for no examples, for labels that aren't as many as images, for a
    batch size below 1, and where `drop_last` leaves no batch.
    """
    check_batch(batch)
    check("batch_size", batch_size, lambda size: is_whole(size, 1), "a whole number, 1 or more")
    images, labels = batch
    count = len(labels) // batch_size * batch_size if drop_last else len(labels)
    if not count:
        raise ValueError(
            f"drop_last leaves no batch: {len(labels)} examples, batch_size {batch_size}: give a "
            "smaller batch_size, or keep the last batch"
        )
    batches = math.ceil(count / batch_size)
    first, done = divmod(start, batches)
    for epoch in range(first, epochs):
        order = data.shuffle(key, epoch, len(labels))[:count]
        for indices in data.batches(order, batch_size, start=done):
            done += 1
            yield Position(epoch, done, batches), (images[indices], labels[indices])
        done = 0


READ_EVERY = 8  # steps: `fit` reads their measurements from the device at once


class Progress(NamedTuple):
    """The progress of a training after a step."""

    train_state: TrainState  # valid until the next step, which may be donated its memory
    averages: metrics.Deferred[metrics.Running]  # over the epoch so far
    examples: int  # of this epoch that are done
    epoch: int  # counted from 0
    batch: int  # batches of this epoch that are done
    batches: int  # per epoch

    @property
    def running(self) -> metrics.Running:
        """Averages over the epoch so far.  Reading them waits for the device.

        Raises NonFiniteLoss if the loss of one of its steps isn't a finite number.
        """
        return self.averages.read()


def fit(
    step: TrainStep,
    train_state: TrainState,
    batch: Batch,
    *,
    batch_size: int,
    epochs: int,
    running: metrics.Running | None = None,
    drop_last: bool = False,
) -> Iterator[Progress]:
    """Train on `batch`, all images and labels, and yield the progress after each step.

    The order of an epoch depends on the key and the epoch alone, and the place in it on
    `train_state.step`: from a state in the middle of an epoch the training continues to the same
    bits.

    Args:
        step: as `make_train_step` returns it, compiled or not.
        train_state: the state to start from.
        batch: all training images (N, …) and labels (N, …).
        batch_size: examples per step.
        epochs: the number of the last epoch, counted from the beginning of the training.
        running: for a state in the middle of an epoch, the averages over the epoch so far; ignored
            at the beginning of an epoch.
        drop_last: True leaves out the last batch of an epoch if it is short, such as one example,
            of which batch norm has no variance.  Each epoch leaves out other examples.

    The measurements are read every `READ_EVERY` steps and at the end of an epoch, or when
    `progress.running` is asked for: until then nothing waits for the device.

    Raises NonFiniteLoss at such a reading, for the first step whose loss isn't a finite number, and
    before the first step the errors of `shuffled_batches`.

    >>> import torch
    >>> from funcnets import layers, optim, random, train
    >>> net, optimizer = layers.linear(2), optim.sgd(0.1)
    >>> images, labels = torch.zeros(5, 3), torch.tensor([0, 1, 0, 1, 0])
    >>> train_state = train.create(net, optimizer, random.key(0), images)
    >>> step = train.make_train_step(net, optimizer)
    >>> for progress in train.fit(step, train_state, (images, labels), batch_size=3, epochs=2):
    ...     print(progress.epoch, progress.batch, progress.batches, progress.examples)
    0 1 2 3
    0 2 2 5
    1 1 2 3
    1 2 2 5
    """
    # The key is read before the first step, to which the state may be donated.
    key, start = shuffle_key(train_state), int(train_state.step)
    parts = shuffled_batches(
        key, batch, batch_size=batch_size, epochs=epochs, start=start, drop_last=drop_last
    )
    averages = metrics.Deferred(running or metrics.Running())
    examples = averages.read().count
    for done, (position, part) in enumerate(parts, start + 1):
        if position.batch == 1:
            averages, examples = metrics.Deferred(metrics.Running()), 0
        train_state, measured = step(train_state, part)
        examples += len(part[1])
        fold = partial(_add, count=len(part[1]), step=done, position=position)
        averages = averages.then(fold, [*metrics.numbers_of(measured)])
        if averages.unread == READ_EVERY or position.batch == position.batches:
            averages.read()
        yield Progress(train_state, averages, examples, *position)


def _add(
    before: metrics.Running,
    numbers: list[list[float]],
    *,
    count: int,
    step: int,
    position: Position,
) -> metrics.Running:
    """Return the averages with one more batch.  Raises NonFiniteLoss if its loss isn't finite."""
    after = _added(before, numbers, count=count)
    if not math.isfinite(after.loss_sum):
        raise NonFiniteLoss(
            f"the loss is {numbers[0][0]} at step {step} (epoch {position.epoch + 1}, batch "
            f"{position.batch}): try a smaller learning rate"
        )
    return after


def evaluate(
    step: EvalStep,
    params: Params,
    state: State,
    batch: Batch,
    *,
    batch_size: int = 500,
) -> metrics.Running:
    """Return mean loss and accuracy over all of `batch`, images (N, …) and labels (N, …).

    `step` is what `make_eval_step` returns; it is given `batch_size` examples at a time.  The
    accuracy of a regression is nan.

    Raises TypeError or ValueError for no examples, and for a batch size below 1.

    >>> import torch
    >>> from funcnets import layers, random, train
    >>> net, images = layers.linear(2), torch.zeros(10, 3)
    >>> params, state = net.init(random.key(0), images)
    >>> labels = torch.zeros(10, dtype=torch.int64)
    >>> result = train.evaluate(train.make_eval_step(net), params, state, (images, labels))
    >>> result.count, result.accuracy in (0.0, 1.0)  # all images are the same
    (10, True)
    """
    check_batch(batch)
    averages = metrics.Deferred(metrics.Running())
    everything = torch.arange(len(batch[1]), device=batch[1].device)
    for indices in data.batches(everything, batch_size):
        images, labels = (part[indices] for part in batch)
        measured = step(params, state, (images, labels))
        fold = partial(_added, count=len(indices))
        averages = averages.then(fold, [*metrics.numbers_of(measured)])
    return averages.read()


def _added(before: metrics.Running, numbers: list[list[float]], *, count: int) -> metrics.Running:
    """Return the averages with one more batch."""
    loss, *correct = (number for (number,) in numbers)
    return before.add(loss, int(correct[0]) if correct else None, count)
