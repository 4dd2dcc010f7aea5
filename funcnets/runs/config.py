"""The configuration of a training: all that decides what it computes."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from funcnets import models, optim
from funcnets.compiler.backends.select import BACKENDS, Backend
from funcnets.precision import PRECISIONS

SCHEDULES = {
    "constant": lambda rate, steps: rate,
    "linear": optim.linear,
    "cosine": optim.cosine,
    "one-cycle": optim.one_cycle,
}
KNOWN_VALUES: dict[str, Collection[str]] = {
    "network": models.INDEX,
    "schedule": SCHEDULES,
    "backend": BACKENDS,
    "precision": PRECISIONS,
}

# What each field of Config is called on the command line.
FLAGS = {
    "network": "NET",
    "recipe": "--recipe",
    "schedule": "--schedule",
    "learning_rate": "--lr",
    "batch_size": "--batch-size",
    "side": "--side",
    "epochs": "--epochs",
    "seed": "--seed",
    "data": "--data",
    "limit_train": "--limit-train",
    "device": "--device",
    "backend": "--backend",
    "precision": "--precision",
}


class UsageError(ValueError):
    """What was asked for can't be done; the message is one line that says what can."""


@dataclass(frozen=True)
class Config:
    """All that decides what a training computes.

    `data` is the directory of the data files, or `bundled`; `limit_train` the number of training
    images, None for all of them; `precision` is `auto` until the first step chooses one.
    """

    network: str
    recipe: str
    schedule: str
    learning_rate: float
    batch_size: int
    side: int
    epochs: int
    seed: int
    data: str
    limit_train: int | None
    device: str
    backend: Backend
    precision: str = "float32"

    @property
    def label(self) -> str:
        """What tells runs of one network and recipe apart, in the names of their directories."""
        return f"seed{self.seed}"


class Row(NamedTuple):
    """What is measured in an epoch: averages over it in training, and over all test images."""

    epoch: int  # counted from 1
    step: int  # steps done at its end
    train_loss: float
    train_accuracy: float
    test_loss: float | None  # None where it is no finite number
    test_accuracy: float
    examples_per_second: float | None  # None where every step was the first of its shape
    seconds: float  # since the epoch began, or went on, with compilation and evaluation


def _check_values(config: Config, names: Mapping[str, str]) -> None:
    """Raise UsageError, which calls a field by its name in `names`, for a value out of range."""
    for field in ("epochs", "batch_size", "side", "limit_train"):
        value = getattr(config, field)
        if value is not None and value < 1:
            raise UsageError(f"{names[field]} is {value}; expected 1 or more")
    if not 0 < config.learning_rate < math.inf:
        name = names["learning_rate"]
        raise UsageError(f"{name} is {config.learning_rate}; expected a finite number above 0")
    if not -(2**63) <= config.seed < 2**63:
        raise UsageError(f"{names['seed']} is {config.seed}; expected an integer of 64 bits")
    for field, known in KNOWN_VALUES.items():
        if getattr(config, field) not in known:
            value = getattr(config, field)
            raise UsageError(f"{names[field]} is {value!r}; expected one of {', '.join(known)}")


def check_device(device: str) -> None:
    """Raise UsageError for a device that can't be used: `meta` too, which keeps no values."""
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device is {device!r}, which can't be used here: {reason}") from None
