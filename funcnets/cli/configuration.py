"""The configuration that the command line's values make."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from funcnets import models
from funcnets.compiler.backends.select import usual_backend
from funcnets.precision import available
from funcnets.runs.config import FLAGS, Config, UsageError, _check_values, check_device


def configure(given: Mapping[str, Any]) -> Config:
    """The configuration for the values `given` by field, the recipe's where there is none.

    Raises UsageError for a name that isn't known or a value out of range.
    """
    name, recipe_name = given.get("network", "lenet_bn"), given.get("recipe", "tuned")
    try:
        recipe = models.get(name, recipe_name)[1]
    except ValueError as error:
        raise UsageError(str(error)) from None
    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    defaults = asdict(recipe) | {
        "seed": 0,
        "data": "bundled",
        "limit_train": None,
        "device": device,
        "backend": usual_backend(device),
    }
    config = Config(**(defaults | dict(given) | {"network": name, "recipe": recipe_name}))
    check(config)
    usable = (*available(config.device), "auto")
    if config.precision not in usable:
        raise UsageError(
            f"--precision is {config.precision}, which is for GPUs; on --device {config.device} "
            f"expected one of {', '.join(usable)}"
        )
    return config


def check(config: Config) -> None:
    """Raise UsageError for a value out of range, or a device that can't be used."""
    _check_values(config, FLAGS)
    check_device(config.device)


def resumed(config: Config, given: Mapping[str, Any]) -> Config:
    """The configuration with which a run goes on, when the values `given` by field are repeated.

    Only the place of the data, the device and, at a constant rate, the number of epochs may be
    others.  Raises UsageError that names the first flag that contradicts the run.
    """
    changes = {field: value for field, value in given.items() if value != getattr(config, field)}
    if changes.get("precision") == "auto":
        del changes["precision"]  # as it chose when the run was started
    for field, value in changes.items():
        problem = (
            f"{FLAGS[field]} is {value}, but the run was started with {getattr(config, field)}"
        )
        if field == "data" and "bundled" not in (value, config.data):
            continue
        if field == "epochs" and config.schedule != "constant":
            raise UsageError(
                f"{problem}, and its {config.schedule} schedule ends with its last epoch: start a "
                f"new run with --epochs {value}, or train by a constant rate"
            )
        if field not in ("device", "epochs"):
            raise UsageError(
                f"{problem}: leave it out to resume, or start a new run with --run DIR"
            )
    config = replace(config, **changes)
    check(config)
    return config
