"""Run directories: what a training was told, where it ran, how it went, and its checkpoints.

config.json  environment.json  metrics.jsonl  metrics.csv  checkpoints/step-00000400/ …
"""

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from funcnets import checkpoint, models, optim, records
from funcnets.jit.compile import BACKENDS, Backend, usual_backend
from funcnets.precision import PRECISIONS, available

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
KEPT_CHECKPOINTS = 2

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


def environment(config: Config) -> dict[str, Any]:
    """Versions, device and threads: with the configuration, what decides the bits of a run."""
    device = torch.device(config.device)
    return {
        "funcnets": importlib.metadata.version("funcnets"),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else config.device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "seed": config.seed,
    }


class Run:
    """A run directory on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @property
    def exists(self) -> bool:
        """Whether there is a run in the directory."""
        return (self.path / "config.json").is_file()

    def read_config(self) -> Config:
        """The configuration of the run.  Raises UsageError if there is none, or it is damaged."""
        path = self.path / "config.json"
        try:
            values = records.read(path)
            config = Config(**records.check(Config, values))
            _check_values(config, {name: name for name in FLAGS})
        except OSError as error:
            raise UsageError(
                f"{self.path}: no run is here (config.json: {error.strerror}); "
                "give the directory that `funcnets train` named"
            ) from None
        except (records.RecordError, UsageError) as error:
            raise UsageError(f"{path}: {error}; restore it, or start anew") from None
        if "rates" in values:
            raise UsageError(
                f"{self.path}: holds a sweep, which can't be resumed or evaluated; "
                "metrics.csv has what it measured"
            )
        return config

    def write_config(self, config: Config) -> None:
        """Write the configuration and the environment."""
        _write(self.path / "config.json", json.dumps(asdict(config), indent=1) + "\n")
        _write(self.path / "environment.json", json.dumps(environment(config), indent=1) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """What `environment` gave when the run was last begun or resumed; empty without a file."""
        path = self.path / "environment.json"
        return _readable(path, records.read) if path.exists() else {}

    def read_rows(self) -> list[Row]:
        """The rows of metrics.jsonl; none if there is no such file."""
        path = self.path / "metrics.jsonl"
        rows = _readable(path, partial(records.read_lines, Row)) if path.exists() else []
        return [Row(**row) for row in rows]

    def write_rows(self, rows: Sequence[Any]) -> None:
        """Replace metrics.jsonl and metrics.csv, each as a whole, by rows of one kind."""
        lines = [json.dumps(row._asdict()) + "\n" for row in rows]
        _write(self.path / "metrics.jsonl", "".join(lines))
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([(rows[0] if rows else Row)._fields, *rows])
        _write(self.path / "metrics.csv", table.getvalue())

    def latest_checkpoint(self) -> Path:
        """The newest complete checkpoint.  Raises UsageError if there is none."""
        found = checkpoint.latest(self.checkpoints)
        if found is not None:
            return found
        if damaged := checkpoint.passed_over(self.checkpoints):
            raise UsageError(
                f"{self.checkpoints}: every checkpoint is damaged ({_names(damaged)}); restore "
                "one, or start anew with --run DIR"
            )
        raise UsageError(f"{self.path}: it has no checkpoint yet; start it anew with --run DIR")

    def warnings(self) -> tuple[str, ...]:
        """One that names the damaged checkpoints that `latest_checkpoint` passes over, or none."""
        damaged = checkpoint.passed_over(self.checkpoints)
        if not damaged:
            return ()
        text = (
            f"{self.checkpoints}: {_names(damaged)} can't be used, being damaged; using "
            f"{self.latest_checkpoint().name}, the newest that is whole"
        )
        return (text,)

    def save(self, step: int, train_state: Any, metadata: dict[str, Any]) -> Path:
        """Write the checkpoint of a step, and remove all but the newest `KEPT_CHECKPOINTS`."""
        path = checkpoint.step_path(self.checkpoints, step)
        checkpoint.save(path, train_state, metadata=metadata)
        checkpoint.prune(self.checkpoints, KEPT_CHECKPOINTS)
        return path


def _readable(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (OSError, records.RecordError) as error:
        raise UsageError(f"{path}: {error}; restore it, or remove it") from None


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _write(path: Path, text: str) -> None:
    """Write a file so that, whenever the process stops, the old or the new one is there, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def create(path: Path | None, config: Config) -> Run:
    """A new run directory: `path`, or else one under `runs` that is named after the configuration.

    Raises UsageError where `path` holds something already, or a directory can't be written.
    """
    try:
        run = Run(_numbered(default_path(config)) if path is None else _empty(path))
        run.write_config(config)
    except OSError as error:
        where = path or default_path(config)
        raise UsageError(
            f"{where}: can't be written ({error.strerror}); choose another place with --run DIR"
        ) from None
    return run


def default_path(config: Config) -> Path:
    """Where a run goes that was given no directory, if nothing is there."""
    return Path("runs") / f"{config.network}-{config.recipe}-{config.label}"


def newest_default(config: Config) -> Path:
    """The last made of the directories that runs with this configuration's name were given."""
    path, number = default_path(config), 2
    while (following := _with_number(default_path(config), number)).exists():
        path, number = following, number + 1
    return path


def _with_number(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number}")


def _numbered(path: Path) -> Path:
    candidate, number = path, 2
    while True:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            candidate, number = _with_number(path, number), number + 1
        else:
            return candidate


def _empty(path: Path) -> Path:
    if Run(path).exists:
        raise UsageError(
            f"{path}: holds a run already; go on with it by --resume, or choose another --run DIR"
        )
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise UsageError(f"{path}: holds other files; choose a directory that is new or empty")
    return path
