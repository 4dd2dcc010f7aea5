"""Run directories: what a training was told, where it ran, how it went, and its checkpoints.

config.json  environment.json  metrics.jsonl  metrics.csv  checkpoints/step-00000400/ …
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
from typing import Any

import torch

from funcnets import checkpoint
from funcnets.runs import json_records
from funcnets.runs.config import FLAGS, Config, Row, UsageError, _check_values

KEPT_CHECKPOINTS = 2


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
            values = json_records.read(path)
            values = _with_known_backend(values)
            config = Config(**json_records.check(Config, values))
            _check_values(config, {name: name for name in FLAGS})
        except OSError as error:
            raise UsageError(
                f"{self.path}: no run is here (config.json: {error.strerror}); "
                "give the directory that `funcnets train` named"
            ) from None
        except (json_records.RecordError, UsageError) as error:
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
        return _readable(path, json_records.read) if path.exists() else {}

    def read_rows(self) -> list[Row]:
        """The rows of metrics.jsonl; none if there is no such file."""
        path = self.path / "metrics.jsonl"
        rows = _readable(path, partial(json_records.read_lines, Row)) if path.exists() else []
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
        if damaged := checkpoint.damaged(self.checkpoints):
            raise UsageError(
                f"{self.checkpoints}: every checkpoint is damaged ({_names(damaged)}); restore "
                "one, or start anew with --run DIR"
            )
        raise UsageError(f"{self.path}: it has no checkpoint yet; start it anew with --run DIR")

    def warnings(self) -> tuple[str, ...]:
        """One that names the damaged checkpoints that `latest_checkpoint` passes over, or none."""
        damaged = checkpoint.damaged(self.checkpoints)
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


def _with_known_backend(values: Any) -> Any:
    """The values of config.json, with `graph` for the back end `aot_eager` of earlier versions."""
    is_removed = isinstance(values, dict) and values.get("backend") == "aot_eager"
    return values | {"backend": "graph"} if is_removed else values


def _readable(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (OSError, json_records.RecordError) as error:
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
