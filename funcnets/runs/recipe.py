"""The training step of a configuration: optimizer, loss, augmentation and averages."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from funcnets import augment, data, losses, optim, parallel, train, transforms, tree
from funcnets.augment import Augmentation
from funcnets.core import Layer, Params, State
from funcnets.optim import Average, Optimizer
from funcnets.optim.transformations import stateless
from funcnets.parallel import Axis
from funcnets.precision import POLICIES, in_channels_last
from funcnets.runs.config import SCHEDULES, Config
from funcnets.train import TrainState, TrainStep
from funcnets.transforms.averaging import Averaged

ONE_PROCESS = Axis()


def preparation(config: Config) -> Callable[[Tensor], Tensor]:
    """Return the function from uint8 images (N, C, H, W) to what the network is trained on.

    On a GPU that is in channels_last, like the weights of convolutions there.
    """
    how: dict[str, Any] = {"mean": config.mean, "deviation": config.deviation}
    prepare: Callable[[Tensor], Tensor] = partial(data.prepare, side=config.side, **how)
    if not config.device.startswith("cuda"):
        return prepare

    def prepare_in_channels_last(images: Tensor) -> Tensor:
        x: Tensor = in_channels_last(prepare(images))
        return x

    return prepare_in_channels_last


def make_step(
    config: Config,
    net: Layer,
    optimizer: Optimizer,
    axis: Axis = ONE_PROCESS,
    *,
    gradient_norm: bool = False,
) -> TrainStep:
    """Return the training step of a configuration: from uint8 images and labels.

    With `steps_per_call` it is that of so many batches, one after another.
    `net` and `optimizer` are those that `build` returns.  Each process of `axis` gives its shard of
    the batch.  With `gradient_norm` the step measures that too.
    """
    augmentation, micro = _augmentation(config), config.accumulate
    step = train.make_train_step(
        net,
        optimizer,
        loss=partial(losses.cross_entropy, label_smoothing=config.label_smoothing),
        prepare=preparation(config),
        augment=augmentation and parallel.shard_augmentation(axis, augmentation),
        policy=POLICIES[config.precision],
        gradient=parallel.gradient(
            axis,
            sync=config.sync_batch_norm,
            shard_gradient=None if micro is None else transforms.accumulate(micro),
        ),
        gradient_norm=gradient_norm,
    )
    average = make_average(config)
    if average is not None:
        step = transforms.averaged(step, average)
    if config.steps_per_call == 1:
        return step
    return train.make_multi_step(step, config.batch_size)


def make_average(config: Config) -> Average | None:
    """Return the moving average of a configuration, in which the initial values don't count."""
    if config.ema is None:
        return None
    return optim.exponential_moving_average(config.ema, debias=True)


def _augmentation(config: Config) -> Augmentation | None:
    if not config.augment:
        return None
    return augment.by_name(config.augment, len(config.class_names), config.side)


def evaluated(train_state: TrainState) -> tuple[Params, State]:
    """Return the parameters and statistics that are evaluated: their averages, if there are any."""
    values = (train_state.params, train_state.state)
    if not isinstance(train_state.opt_state, Averaged):
        return values
    averages = transforms.averages(train_state)
    cast: tuple[Params, State] = tree.map(lambda mean, leaf: mean.to(leaf.dtype), averages, values)
    return cast


def make_optimizer(config: Config, steps: int, rate: Any) -> Optimizer:
    """Return the optimizer of a configuration for a training of `steps` steps.

    `rate` is the highest learning rate, a number or a tensor.
    """
    clip = [] if config.clip_norm is None else [optim.clip_by_global_norm(config.clip_norm)]
    decay = [_decay_matrices(config.weight_decay)] if config.weight_decay else []
    if config.optimizer == "sgd":
        momentum = optim.add_momentum(config.momentum, nesterov=config.nesterov)
        parts = [*decay, *([momentum] if config.momentum else [])]
    elif config.optimizer == "adam":
        parts = [*decay, optim.scale_by_adam()]
    else:
        parts = [optim.scale_by_adam(), *decay]
    rule = optim.chain(*clip, *parts, optim.scale_by_learning_rate(schedule(config, steps, rate)))
    if not config.freeze:
        return rule
    frozen = {pattern.strip(): optim.frozen() for pattern in config.freeze.split(",")}
    return optim.partition({**frozen, "*": rule})


def _decay_matrices(weight_decay: float) -> Optimizer:
    """updates = updates + weight_decay · params, without biases and batch norms, which are vectors.

    As is usual: He et al., "Bag of tricks for image classification", 2019, section 3.1.
    """
    return stateless(
        lambda grads, params: tree.map(
            lambda g, p: g + weight_decay * p if p.ndim > 1 else g, grads, params
        )
    )


def learning_rate_at(config: Config, steps: int, step: int, rate: float) -> float:
    """Return the learning rate of the step number `step`, from 1, in a training of `steps`.

    `rate` is the highest one.
    """
    course = schedule(config, steps, rate)
    return float(course(torch.tensor(step - 1)) if callable(course) else course)


def schedule(config: Config, steps: int, rate: Any) -> Any:
    """Return the learning rate of a training: a function of the step, or a constant."""
    course = SCHEDULES[config.schedule]
    if not config.warmup:
        return course(rate, steps)
    climb = max(1, round(config.warmup * steps / config.epochs))
    rest = course(rate, max(1, steps - climb))
    return optim.warmup(climb, rest if callable(rest) else optim.constant(rest))
