"""Run directories: what a training was told, where it ran, how it went, and its checkpoints.

config.json  environment.json  metrics.jsonl  metrics.csv  checkpoints/step-00000400/ ...
"""

import csv
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch

import funcnets
from funcnets import checkpoint
from funcnets.runs import json_records
from funcnets.runs.config import Config, ConfigError, SweepConfig
from funcnets.runs.rows import EpochRow

KEPT_CHECKPOINTS = 2

Read = TypeVar("Read")


class RunError(ValueError):
    """A run directory can't be made, read or used; one line with its path and what to do."""


def environment(config: Config) -> dict[str, Any]:
    """Return versions, device and threads: with the configuration, they decide a run's bits."""
    device = torch.device(config.device)
    return {
        "funcnets": funcnets.__version__,
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else config.device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "seed": config.seed,
    }


class RunDirectory:
    """The directory of a run on disk.

    Attributes:
        path: the directory.
        checkpoints: the directory of its checkpoints, `path/checkpoints`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    @classmethod
    def create(cls, config: Config, path: str | os.PathLike[str] | None = None) -> Self:
        """Make a new run directory: `path`, or one under `runs` named after the configuration.

        Raises RunError if `path` holds something already, or a directory can't be written.
        """
        usual = _usual_path(config)
        try:
            run = cls(_make_numbered(usual) if path is None else _make_empty(Path(path)))
            run.write_config(config)
        except OSError as error:
            raise RunError(
                f"{usual if path is None else path}: can't be written ({error.strerror}); choose "
                "another place with --run DIR"
            ) from None
        return run

    @classmethod
    def newest(cls, config: Config) -> Self:
        """Return the newest of the run directories that are named after this configuration."""
        path, number = _usual_path(config), 2
        while (following := _with_number(_usual_path(config), number)).exists():
            path, number = following, number + 1
        return cls(path)

    @property
    def exists(self) -> bool:
        """True if there is a run in the directory."""
        return (self.path / "config.json").is_file()

    def read_config(self) -> Config:
        """Return the configuration, a `SweepConfig` for a sweep.

        Raises RunError if there is none, or it is damaged.
        """
        path = self.path / "config.json"
        try:
            values = _with_known_backend(json_records.read(path))
            kind = SweepConfig if "rates" in values else Config
            return kind(**json_records.check(kind, values))
        except OSError as error:
            raise RunError(
                f"{self.path}: no run is here (config.json: {error.strerror}); "
                "give the directory that `funcnets train` named"
            ) from None
        except (json_records.RecordError, ConfigError) as error:
            raise RunError(f"{path}: {error}; restore it, or start a new run") from None

    def write_config(self, config: Config) -> None:
        """Write the configuration and the environment."""
        _write(self.path / "config.json", json.dumps(asdict(config), indent=1) + "\n")
        _write(self.path / "environment.json", json.dumps(environment(config), indent=1) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """Return the environment of the run's last start; empty without environment.json.

        Raises RunError if the file is damaged.
        """
        path = self.path / "environment.json"
        return _readable(path, json_records.read) if path.exists() else {}

    def read_rows(self) -> list[EpochRow]:
        """Return the rows of a training's metrics.jsonl; none if there is no such file.

        Raises RunError if the file is damaged.
        """
        path = self.path / "metrics.jsonl"
        read = partial(json_records.read_lines, EpochRow)
        return [EpochRow(**row) for row in _readable(path, read)] if path.exists() else []

    def write_rows(self, rows: Sequence[NamedTuple]) -> None:
        """Replace metrics.jsonl and metrics.csv, each as a whole, by rows of one kind."""
        lines = [json.dumps(row._asdict()) + "\n" for row in rows]
        _write(self.path / "metrics.jsonl", "".join(lines))
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([rows[0]._fields if rows else EpochRow._fields, *rows])
        _write(self.path / "metrics.csv", table.getvalue())

    def latest_checkpoint(self) -> Path:
        """Return the newest complete checkpoint.  Raises RunError if there is none."""
        found = checkpoint.latest(self.checkpoints)
        if found is not None:
            return found
        if damaged := checkpoint.damaged(self.checkpoints):
            raise RunError(
                f"{self.checkpoints}: every checkpoint is damaged ({_names(damaged)}); restore "
                "one, or start a new run with --run DIR"
            )
        raise RunError(f"{self.path}: it has no checkpoint yet; start a new run with --run DIR")

    def warnings(self) -> tuple[str, ...]:
        """Return a line that names the damaged checkpoints newer than the latest, if any."""
        damaged = checkpoint.damaged(self.checkpoints)
        if not damaged:
            return ()
        text = (
            f"{self.checkpoints}: {_names(damaged)} can't be used, being damaged; using "
            f"{self.latest_checkpoint().name}, the newest that is whole"
        )
        return (text,)

    def save(self, step: int, train_state: Any, metadata: dict[str, Any]) -> Path:
        """Write the checkpoint of a step, and remove all but the newest `KEPT_CHECKPOINTS`.

        Raises CheckpointError if it can't be written.
        """
        path = checkpoint.step_path(self.checkpoints, step)
        checkpoint.save(path, train_state, metadata=metadata)
        checkpoint.prune(self.checkpoints, KEPT_CHECKPOINTS)
        return path


def _with_known_backend(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of config.json, with `graph` for `aot_eager`, a back end of before."""
    return values | {"backend": "graph"} if values.get("backend") == "aot_eager" else values


def _readable(path: Path, read: Callable[[Path], Read]) -> Read:
    try:
        return read(path)
    except (OSError, json_records.RecordError) as error:
        raise RunError(f"{path}: {error}; restore it, or remove it") from None


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _write(path: Path, text: str) -> None:
    """Replace a file at once: whenever the process stops, the old or the new one is there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _usual_path(config: Config) -> Path:
    return Path("runs") / f"{config.network}-{config.recipe}-{config.label}"


def _with_number(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number}")


def _make_numbered(path: Path) -> Path:
    """Make the directory `path`, or `path-2`, `path-3`, ... if it exists."""
    candidate, number = path, 2
    while True:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            candidate, number = _with_number(path, number), number + 1
        else:
            return candidate


def _make_empty(path: Path) -> Path:
    """Make the directory `path`.  Raises RunError if it holds anything."""
    if RunDirectory(path).exists:
        raise RunError(
            f"{path}: holds a run already; go on with it by --resume, or choose another --run DIR"
        )
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise RunError(f"{path}: holds other files; choose a directory that is new or empty")
    return path
