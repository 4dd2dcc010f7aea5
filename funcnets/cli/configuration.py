"""The configuration made of what was given on the command line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from funcnets.cli.options import FLAGS
from funcnets.precision import available
from funcnets.runs import Config, ConfigError, SweepConfig
from funcnets.runs.config import LARGEST_WHOLE_NUMBER


class UsageError(ValueError):
    """A command can't do what was asked for; one line that names the flag and what can be done."""


def check_range(
    flag: str, value: float | None, least: int, most: int = LARGEST_WHOLE_NUMBER, unit: str = ""
) -> None:
    """Raise UsageError for a number that is out of range; None is one that was not given."""
    if value is None:
        return
    if not value >= least:
        raise UsageError(f"{flag} is {value:.12g}; expected {least}{unit} or more")
    if value > most:
        raise UsageError(f"{flag} is {value:.12g}; expected at most {most:,}")


def configure(given: Mapping[str, Any]) -> Config:
    """Return the configuration for the values `given` by field, else the recipe's.

    It is a sweep's if `seeds` is given.  Raises ValueError, mostly UsageError, for an unknown name
    or a value out of range.
    """
    kind = SweepConfig if "seeds" in given else Config
    with _fields_as_flags():
        config = kind.from_recipe(**given)
    check_device(config.device)
    usable = (*available(config.device), "auto")
    if config.precision not in usable:
        raise UsageError(
            f"--precision is {config.precision}, which is for GPUs; on --device {config.device} "
            f"expected one of {', '.join(usable)}"
        )
    return config


@contextmanager
def _fields_as_flags() -> Iterator[None]:
    """Around code that makes a Config: a ConfigError becomes a UsageError that names the flag."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(f"{FLAGS[error.field]} {error.problem}") from None


def check_device(device: str) -> None:
    """Raise UsageError for a device that can't be used; `meta` is one, as it keeps no values."""
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device is {device!r}, which can't be used here: {reason}") from None


def updated(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a run's configuration with other values for some fields, checked like any other."""
    with _fields_as_flags():
        config = replace(config, **changes)
    check_device(config.device)
    return config


def resumed(config: Config, given: Mapping[str, Any]) -> Config:
    """Return the configuration with which a run is resumed, if these values are `given` again.

    Only the place of the data, the device and, at a constant rate, the number of epochs may be
    others.  Raises UsageError that names the first flag that contradicts the run.
    """
    changes = {field: value for field, value in given.items() if value != getattr(config, field)}
    if changes.get("precision") == "auto":
        del changes["precision"]  # what it chose when the run was started
    for field, value in changes.items():
        problem = (
            f"{FLAGS[field]} is {value}, but the run was started with {getattr(config, field)}"
        )
        if field in ("data", "dataset") and config.fingerprint is not None:
            continue  # that decides
        if field == "data" and "bundled" not in (value, config.data):
            continue
        if field == "epochs" and config.schedule != "constant":
            raise UsageError(
                f"{problem}, and its {config.schedule} schedule ends with its last epoch: start a "
                f"new run with --epochs {value}, or train with a constant rate"
            )
        if field not in ("device", "epochs"):
            raise UsageError(
                f"{problem}: leave it out to resume, or start a new run with --run-dir DIR"
            )
    return updated(config, changes)
