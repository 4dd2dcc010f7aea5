"""Training and evaluation steps: pure functions from state to state."""

import inspect
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from funcnets import losses, metrics, optim, precision, random
from funcnets._validate import check, is_whole
from funcnets.augment import Augmentation
from funcnets.core import Layer, Params, State, check_layer
from funcnets.optim import Optimizer
from funcnets.optim.transformations import check_optimizer
from funcnets.precision import Policy

AUGMENTATION = 2**31 - 1  # folded into the key of a training, for that of its augmentations

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
    augment: Augmentation | None = None,
    policy: Policy | None = None,
    gradient: Gradient = batch_gradient,
    gradient_norm: bool = False,
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
        augment: applied to the prepared images and the labels, with a key of the step, such as
            `augment.chain(augment.crop(4), augment.flip())`.
        policy: the dtypes of the network; None keeps those of parameters and images.
        gradient: computes the gradients, such as `transforms.accumulate(64)`.
        gradient_norm: True adds the measurement `gradient_norm` (0-d): the Euclidean norm of all
            gradients as one vector, before the optimizer clips or scales them.  False costs
            nothing.

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
        if augment is not None:
            augment_key = random.fold_in(train_state.key, AUGMENTATION)
            x, labels = augment(random.fold_in(augment_key, train_state.step), x, labels)
        key = None
        if net.stochastic:
            key = random.fold_in(random.split(train_state.key)[1], train_state.step)
        grads, state, measured = gradient(
            net, loss, train_state.params, train_state.state, (x, labels), key=key
        )
        if gradient_norm:  # before the update, which may take the memory of the gradients
            measured = {**measured, "gradient_norm": optim.global_norm(grads)}
        updates, opt_state = optimizer.update(grads, train_state.opt_state, train_state.params)
        params = optim.apply_updates(train_state.params, updates)
        after = TrainState(train_state.step + 1, params, state, opt_state, train_state.key)
        return after, measured

    return step


def make_multi_step(step: TrainStep, batch_size: int) -> TrainStep:
    """Return the pure function that does a step for each `batch_size` examples of its batch.

    The last one may have fewer.  Each measurement has a first axis, of the steps.  Compiled, all
    steps are one graph, so that Python is paid once for all of them; `jax.lax.scan` does the same
    by a loop.  For small networks, with `fit(..., steps_per_call=8)`.

    >>> import torch
    >>> from funcnets import layers, optim, random, train
    >>> net, optimizer = layers.linear(3), optim.sgd(0.1)
    >>> step = train.make_multi_step(train.make_train_step(net, optimizer), batch_size=2)
    >>> train_state = train.create(net, optimizer, random.key(0), torch.zeros(4, 5))
    >>> batch = (torch.zeros(4, 5), torch.tensor([0, 1, 2, 0]))
    >>> train_state, measurements = step(train_state, batch)
    >>> int(train_state.step), measurements["loss"].shape
    (2, torch.Size([2]))
    """
    check("batch_size", batch_size, lambda size: is_whole(size, 1), "a whole number, 1 or more")

    def steps(train_state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        check_batch(batch)
        measured = []
        for part in zip(*(values.split(batch_size) for values in batch), strict=True):
            train_state, one = step(train_state, part)
            measured.append(one)
        return train_state, {name: torch.stack([m[name] for m in measured]) for name in measured[0]}

    return steps


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
