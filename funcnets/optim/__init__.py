"""Optimizers as pairs of pure functions, and learning rates as functions of the step.

An optimizer turns gradients into updates and carries its memory in a tree of tensors; big ones
are chains of small ones, as in optax.  The numbers are those of `torch.optim`.
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
    Optimizer,
    StepState,
    TraceState,
    adam,
    adamw,
    add_decayed_weights,
    apply_updates,
    chain,
    clip_by_global_norm,
    dampen,
    global_norm,
    scale_by_adam,
    scale_by_learning_rate,
    sgd,
    trace,
)

__all__ = [
    "AdamState",
    "Average",
    "AverageState",
    "LearningRate",
    "NoiseState",
    "Optimizer",
    "Schedule",
    "StepState",
    "TraceState",
    "adam",
    "adamw",
    "add_decayed_weights",
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
    "scale_by_adam",
    "scale_by_learning_rate",
    "sgd",
    "step_decay",
    "trace",
    "warmup",
]
