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

from funcnets.train.loop import Position, Progress, evaluate, fit, run_steps, shuffled_batches
from funcnets.train.steps import (
    Batch,
    EvalStep,
    Gradient,
    Loss,
    Measurements,
    NonFiniteLoss,
    Prepare,
    TrainState,
    TrainStep,
    batch_gradient,
    check_batch,
    create,
    make_eval_step,
    make_multi_step,
    make_train_step,
    shuffle_key,
)

__all__ = [
    "Batch",
    "EvalStep",
    "Gradient",
    "Loss",
    "Measurements",
    "NonFiniteLoss",
    "Position",
    "Prepare",
    "Progress",
    "TrainState",
    "TrainStep",
    "batch_gradient",
    "check_batch",
    "create",
    "evaluate",
    "fit",
    "make_eval_step",
    "make_multi_step",
    "make_train_step",
    "run_steps",
    "shuffle_key",
    "shuffled_batches",
]
