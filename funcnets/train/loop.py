"""The loop around training steps, and evaluation: batches in order, and averages of an epoch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from funcnets import data, metrics
from funcnets._validate import check, is_whole
from funcnets.core import Params, State
from funcnets.train.steps import (
    Batch,
    EvalStep,
    NonFiniteLoss,
    TrainState,
    TrainStep,
    check_batch,
    shuffle_key,
)


class Position(NamedTuple):
    """The place of a batch, or of several, in a training."""

    epoch: int  # counted from 0
    batch: int  # the last one, within its epoch, counted from 1
    batches: int  # per epoch
    sizes: tuple[int, ...]  # examples of each of the batches

    @property
    def is_first(self) -> bool:
        """True if an epoch begins with this batch."""
        return self.batch == len(self.sizes)

    @property
    def step(self) -> int:
        """Steps of the training that are done after this batch."""
        return self.epoch * self.batches + self.batch


def shuffled_batches(
    key: Tensor,
    batch: Batch,
    *,
    batch_size: int,
    epochs: int,
    start: int = 0,
    drop_last: bool = False,
    steps_per_call: int = 1,
) -> Iterator[tuple[Position, Batch]]:
    """Yield the batches of a training on `batch`, all images and labels, from step `start` on.

    The order of an epoch depends on the key (see `shuffle_key`) and the epoch alone.  The short
    last batch of an epoch is kept, unless `drop_last` is True.  With `steps_per_call` so many
    batches come as one, or the fewer that are left of an epoch.

    Raises TypeError or ValueError for no examples, for labels that aren't as many as images, for a
    batch size or a number of steps below 1, and where `drop_last` leaves no batch.
    """
    check_batch(batch)
    for name, value in (("batch_size", batch_size), ("steps_per_call", steps_per_call)):
        check(name, value, lambda size: is_whole(size, 1), "a whole number, 1 or more")
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
        order = data.shuffle(key, epoch, len(labels))[done * batch_size : count]
        for indices in order.split(batch_size * steps_per_call):
            sizes = tuple(len(part) for part in indices.split(batch_size))
            done += len(sizes)
            yield Position(epoch, done, batches, sizes), (images[indices], labels[indices])
        done = 0


T = TypeVar("T")
Add = Callable[[T, metrics.Numbers, int, Position], T]
READ_EVERY = 8  # steps: `fit` reads their measurements from the device at once


class Progress(NamedTuple, Generic[T]):
    """The progress of a training after a step."""

    train_state: TrainState  # valid until the next step, which may be donated its memory
    averages: metrics.Deferred[T]  # over the epoch so far
    examples: int  # of this epoch that are done; by each member, of an ensemble
    epoch: int  # counted from 0
    batch: int  # batches of this epoch that are done
    batches: int  # per epoch

    @property
    def running(self) -> T:
        """Averages over the epoch so far.  Reading them waits for the device.

        Raises NonFiniteLoss if the loss of one of its steps isn't a finite number.
        """
        return self.averages.read()

    @property
    def step(self) -> int:
        """Steps of the training that are done."""
        return self.epoch * self.batches + self.batch


def run_steps(
    step: TrainStep,
    train_state: TrainState,
    parts: Iterable[tuple[Position, Batch]],
    before: T,
    nothing: T,
    examples: int,
    add: Add[T],
) -> Iterator[Progress[T]]:
    """Do a step for each of `parts`, and yield the progress after it.

    Args:
        step: as `make_train_step` returns it, or one of several networks or of several steps.
        train_state: the state to start from.
        parts: batches, as `shuffled_batches` yields them.
        before: averages over the epoch so far.
        nothing: averages before the first batch of an epoch.
        examples: the number of examples in `before`.
        add: gives the averages with the numbers of one more step.
    """
    averages = metrics.Deferred(before)
    for position, part in parts:
        if position.is_first:
            averages, examples = metrics.Deferred(nothing), 0
        train_state, measured = step(train_state, part)
        fold = partial(_add_steps, add, sizes=position.sizes, position=position)
        averages = averages.then(fold, [*metrics.numbers_of(measured)])
        if averages.unread == READ_EVERY or position.batch == position.batches:
            averages.read()
        examples += len(part[1])
        yield Progress(train_state, averages, examples, *position[:3])


def _add_steps(
    add: Add[T], before: T, numbers: metrics.Numbers, *, sizes: Sequence[int], position: Position
) -> T:
    """Return the averages with the steps of one call, whose numbers come one after another."""
    for i, size in enumerate(sizes):
        widths = (len(column) // len(sizes) for column in numbers)  # one, or one for each member
        pairs = zip(numbers, widths, strict=True)
        own = [column[i * width : (i + 1) * width] for column, width in pairs]
        batch = position.batch - len(sizes) + 1 + i
        before = add(before, own, size, position._replace(batch=batch))
    return before


def fit(
    step: TrainStep,
    train_state: TrainState,
    batch: Batch,
    *,
    batch_size: int,
    epochs: int,
    running: metrics.Running | None = None,
    drop_last: bool = False,
    steps_per_call: int = 1,
) -> Iterator[Progress[metrics.Running]]:
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
        steps_per_call: batches that `step` is given at once, if it was made by `make_multi_step`.

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
        key,
        batch,
        batch_size=batch_size,
        epochs=epochs,
        start=start,
        drop_last=drop_last,
        steps_per_call=steps_per_call,
    )
    before = running or metrics.Running()
    return run_steps(step, train_state, parts, before, metrics.Running(), before.count, _add)


def _add(
    before: metrics.Running, numbers: metrics.Numbers, count: int, position: Position
) -> metrics.Running:
    """Return the averages with one more batch.  Raises NonFiniteLoss if its loss isn't finite."""
    after = _added(before, numbers, count=count)
    if not math.isfinite(after.loss_sum):
        raise NonFiniteLoss(
            f"the loss is {numbers[0][0]} at step {position.step} (epoch {position.epoch + 1}, "
            f"batch {position.batch}): try a smaller learning rate"
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


def _added(before: metrics.Running, numbers: metrics.Numbers, *, count: int) -> metrics.Running:
    """Return the averages with one more batch."""
    loss, *correct = (number for (number,) in numbers)
    return before.add(loss, int(correct[0]) if correct else None, count)
