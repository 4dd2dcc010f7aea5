"""Optimizers as pairs of pure functions, and learning rates as functions of the step.

An optimizer turns gradients into updates, and keeps its state in a tree of tensors.  Larger ones
are chains of small gradient transformations, as in optax; the numbers are those of `torch.optim`.

>>> import torch
>>> from funcnets import optim
>>> optimizer = optim.chain(
...     optim.clip_by_global_norm(1.0),
...     optim.masked(optim.add_decayed_weights(1e-4), "*.weight"),
...     optim.sgd(optim.warmup(100, optim.cosine(0.1, total_steps=900)), momentum=0.9),
... )
>>> params = {"fc": {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}}
>>> opt_state = optimizer.init(params)
>>> updates, opt_state = optimizer.update(params, opt_state, params)
>>> params = optim.apply_updates(params, updates)
"""

from funcnets.optim.masks import frozen, mask, masked, partition
from funcnets.optim.moving_average import Average, AverageState, exponential_moving_average
from funcnets.optim.privacy import (
    NoiseState,
    add_noise,
    clip_per_example,
    per_example_norms,
    private,
)
from funcnets.optim.rated import RateState, rated
from funcnets.optim.schedules import (
    Schedule,
    constant,
    cosine,
    linear,
    one_cycle,
    step_decay,
    warmup,
)
from funcnets.optim.transformations import (
    AdamState,
    LearningRate,
    MomentumState,
    Optimizer,
    StepState,
    adam,
    adamw,
    add_decayed_weights,
    add_momentum,
    apply_updates,
    chain,
    clip_by_global_norm,
    dampen,
    global_norm,
    scale_by_adam,
    scale_by_learning_rate,
    sgd,
)

__all__ = [
    "AdamState",
    "Average",
    "AverageState",
    "LearningRate",
    "MomentumState",
    "NoiseState",
    "Optimizer",
    "RateState",
    "Schedule",
    "StepState",
    "adam",
    "adamw",
    "add_decayed_weights",
    "add_momentum",
    "add_noise",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "clip_per_example",
    "constant",
    "cosine",
    "dampen",
    "exponential_moving_average",
    "frozen",
    "global_norm",
    "linear",
    "mask",
    "masked",
    "one_cycle",
    "partition",
    "per_example_norms",
    "private",
    "rated",
    "scale_by_adam",
    "scale_by_learning_rate",
    "sgd",
    "step_decay",
    "warmup",
]
