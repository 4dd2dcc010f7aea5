"""Run directories: what a training was told, where it ran, how it went, and its checkpoints.

config.json  environment.json  metrics.jsonl  metrics.csv  checkpoints/step-00000400/ ...  .lock
steps.jsonl  steps.csv  tensorboard/ ... where single steps, or TensorBoard, are asked for

One process at a time writes to a run: the first write takes its lock.  Every file is replaced as a
whole, so that readers need no lock; but for steps.jsonl and steps.csv, to which lines are added.
"""

import csv
import importlib.metadata
import io
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch

import funcnets
from funcnets import _files, checkpoint
from funcnets.compiler.kernels import build
from funcnets.runs import json_records, networks
from funcnets.runs.config import Config, ConfigError, SweepConfig
from funcnets.runs.lock import LOCK, Lock, LockedError
from funcnets.runs.rows import EpochRow, Row, StepRow, best_step

KEPT_CHECKPOINTS = 2
STEP_FILES = ("steps.jsonl", "steps.csv")
FILES = ("config.json", "environment.json", "metrics.jsonl", "metrics.csv", *STEP_FILES)

Read = TypeVar("Read")


class RunError(ValueError):
    """A run directory can't be made, read or used; one line with its path and what to do."""


def environment(config: Config, processes: int = 1) -> dict[str, Any]:
    """Return versions, device, threads and the number of processes.

    With the configuration, they decide a run's bits.
    """
    device = torch.device(config.device)
    return {
        "funcnets": funcnets.__version__,
        "torch": torch.__version__,
        "torchvision": _installed_version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else config.device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": build.describe() if device.type == "cpu" else "none",
        "processes": processes,
        "seed": config.seed,
    }


def _installed_version(package: str) -> str:
    """Return the version of a package that is too slow to import for it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # found by PYTHONPATH alone
        return "unknown"


class RunDirectory:
    """The directory of a run on disk.

    Attributes:
        path: the directory.
        checkpoints: the directory of its checkpoints, `path/checkpoints`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._lock: Lock | None = None

    @classmethod
    def create(
        cls, config: Config, path: str | os.PathLike[str] | None = None, *, processes: int = 1
    ) -> Self:
        """Make a new run directory: `path`, or one under `runs` named after the configuration.

        `processes` is the number of processes that train together.

        Raises RunError if `path` holds something already, or a directory can't be written.
        """
        usual = _usual_path(config)
        try:
            run = cls(_make_numbered(usual) if path is None else path)
            run._claim()
        except OSError as error:
            raise RunError(
                f"{usual if path is None else path}: can't be written ({error.strerror}); choose "
                "another place with --run-dir DIR"
            ) from None
        run.write_config(config, processes)
        return run

    @classmethod
    def newest(cls, config: Config) -> Self:
        """Return the newest of the run directories that are named after this configuration."""
        usual = _usual_path(config)
        number = max(_numbers(usual), default=1)
        return cls(usual if number == 1 else _with_number(usual, number))

    def lock(self) -> None:
        """Take the lock of the run, which `release` gives back, or the end of the process.

        Raises RunError if another process has it, or it can't be taken.
        """
        if self._lock is not None:
            return
        try:
            self._lock = Lock(self.path)
            self._remove_unfinished()
        except LockedError as error:
            raise RunError(
                f"{self.path}: {error} is writing to this run; wait until it ends, or stop it first"
            ) from None
        except OSError as error:
            raise RunError(
                f"{self.path}: can't be written ({error.strerror}); check that it is there, and "
                "its permissions"
            ) from None

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def _remove_unfinished(self) -> None:
        """Remove what writers that were stopped have left; none writes now."""
        for path in self.path.iterdir():
            if _files.temporary_for(path.name) in FILES:
                path.unlink()
        checkpoint.remove_unfinished(self.checkpoints)

    def _claim(self) -> None:
        """Make the directory and lock it.  Raises RunError if it holds anything."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_empty()
        self.lock()
        self._check_empty()  # by now another process may have begun and ended

    def _check_empty(self) -> None:
        if self.exists:
            raise RunError(
                f"{self.path}: holds a run already; go on with it by --resume, or choose another "
                "--run-dir DIR"
            )
        for path in self.path.iterdir():
            if path.name != LOCK and _files.temporary_for(path.name) not in FILES:
                raise RunError(
                    f"{self.path}: holds other files ({path.name}); choose a directory that is new "
                    "or empty"
                )

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
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(
                f"{self.path}: no run is here (config.json: {error.strerror}); "
                "give the directory that `funcnets train` named"
            ) from None
        except OSError as error:
            raise RunError(f"{path}: can't be read ({error.strerror})") from None
        except (json_records.RecordError, ConfigError) as error:
            raise RunError(f"{path}: {error}; restore it, or start a new run") from None

    def write_config(self, config: Config, processes: int = 1) -> None:
        """Write the configuration, and the environment with the number of processes."""
        where = environment(config, processes)
        # The configuration first: with it a run is there, which can be resumed.
        self._write("config.json", json.dumps(asdict(config), indent=1) + "\n")
        self._write("environment.json", json.dumps(where, indent=1) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """Return the environment of the run's last start; empty without environment.json.

        Raises RunError if the file is damaged.
        """
        path = self.path / "environment.json"
        return _readable(path, json_records.read) if path.exists() else {}

    def read_rows(self, kind: type[Row] = EpochRow) -> list[Row]:  # type: ignore[assignment]
        """Return the rows of metrics.jsonl; none without the file.

        `kind` is `EpochRow`, or `MemberRow` for a sweep.

        Raises RunError if the file is damaged.
        """

        def read(path: Path) -> list[Row]:
            return [kind(**fields) for fields in json_records.read_lines(kind, path)]

        path = self.path / "metrics.jsonl"
        return _readable(path, read) if path.exists() else []

    def write_rows(self, rows: Sequence[NamedTuple]) -> None:
        """Replace metrics.jsonl and metrics.csv, each as a whole, by rows of one kind."""
        self._write("metrics.jsonl", _json_lines(rows))
        self._write(
            "metrics.csv", _csv_lines([rows[0]._fields if rows else EpochRow._fields, *rows])
        )

    def read_step_rows(self) -> list[StepRow]:
        """Return the rows of steps.jsonl; none without the file.

        A last line that was cut off, when the training was killed, is left out.

        Raises RunError if the file is damaged.
        """

        def read(path: Path) -> list[StepRow]:
            whole, _, _ = _files.read_bytes(path).decode("utf-8").rpartition("\n")
            return [
                StepRow(**json_records.check(StepRow, json_records.parse(line)))
                for line in whole.splitlines()
            ]

        path = self.path / STEP_FILES[0]
        return _readable(path, read) if path.exists() else []

    def add_step_rows(self, rows: Sequence[StepRow]) -> None:
        """Add rows to steps.jsonl and steps.csv."""
        has_head = (self.path / STEP_FILES[1]).exists()
        table = _csv_lines(rows if has_head else [StepRow._fields, *rows])
        for name, text in zip(STEP_FILES, (_json_lines(rows), table), strict=True):
            self._write(name, text, is_added=True)

    def cut_step_rows(self, step: int) -> None:
        """Remove the rows of steps after `step`, from which on the training is done again."""
        if any((self.path / name).exists() for name in STEP_FILES):
            rows = [row for row in self.read_step_rows() if row.step <= step]
            self._write(STEP_FILES[0], _json_lines(rows))
            self._write(STEP_FILES[1], _csv_lines([StepRow._fields, *rows]))

    def _write(self, name: str, text: str, *, is_added: bool = False) -> None:
        """Replace a file of the run, or add to it.  Raises RunError if that can't be done."""
        path = self.path / name
        self._check_writer()
        try:
            (_files.append if is_added else _files.replace)(path, text)
        except OSError as error:
            raise RunError(
                f"{path}: can't be written ({error.strerror}); check its permissions and the room "
                "on its disk"
            ) from error

    def _check_writer(self) -> None:
        """Raise RunError unless this process may write, and the directory is where it was."""
        self.lock()
        if self._lock is not None and not self._lock.is_in_place:
            raise RunError(
                f"{self.path}: the directory of the run was removed or renamed, or another is in "
                "its place; what was saved is there still if it was renamed"
            )

    @property
    def has_checkpoint(self) -> bool:
        """True if a checkpoint is there, be it damaged."""
        return (
            checkpoint.latest(self.checkpoints) is not None
            or checkpoint.damaged(self.checkpoints) != []
        )

    def latest_checkpoint(self) -> Path:
        """Return the newest complete checkpoint.  Raises RunError if there is none."""
        found = checkpoint.latest(self.checkpoints)
        if found is not None:
            return found
        if damaged := checkpoint.damaged(self.checkpoints):
            raise RunError(
                f"{self.checkpoints}: every checkpoint is damaged ({_names(damaged)}); restore "
                "one, or start a new run with --run-dir DIR"
            )
        raise RunError(f"{self.path}: it has no checkpoint yet; begin it by --resume")

    def read_latest(self, read: Callable[[Path], Read]) -> tuple[Path, Read]:
        """Return the newest complete checkpoint, and what `read` returns for it.

        Raises RunError if there is none, and what `read` raises: CheckpointError if a byte changed.
        """
        while True:
            found = self.latest_checkpoint()
            try:
                return found, read(found)
            except checkpoint.CheckpointError:
                if found.exists():
                    raise
                # It was pruned while it was read: a newer one is there.

    def read_best(self, read: Callable[[Path], Read]) -> tuple[Path, Read]:
        """Return the checkpoint of the best epoch, and what `read` returns for it.

        The newest one if that isn't there.  Raises as `read_latest` does.
        """
        step = best_step(self.read_rows())
        path = None if step is None else checkpoint.step_path(self.checkpoints, step)
        if path is None or path in checkpoint.damaged(self.checkpoints) or not path.exists():
            return self.read_latest(read)
        return path, read(path)

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

    def save(
        self,
        step: int,
        train_state: Any,
        metadata: dict[str, Any],
        *,
        best_step: int | None = None,
    ) -> Path:
        """Write the checkpoint of a step, and remove all but the newest `KEPT_CHECKPOINTS`.

        That of `best_step` is kept beside them.  Raises CheckpointError if it can't be written,
        RunError if another process writes to the run, or its directory isn't there any more.
        """
        self._check_writer()
        path = checkpoint.step_path(self.checkpoints, step)
        checkpoint.save(path, train_state, metadata=metadata)
        best = () if best_step is None else (checkpoint.step_path(self.checkpoints, best_step),)
        checkpoint.prune(self.checkpoints, KEPT_CHECKPOINTS, also=best)
        return path


def _json_lines(rows: Sequence[NamedTuple]) -> str:
    return "".join(json.dumps(row._asdict()) + "\n" for row in rows)


def _csv_lines(rows: Sequence[Sequence[Any]]) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue()


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


def _usual_path(config: Config) -> Path:
    return Path("runs") / f"{networks.file_name(config.network)}-{config.recipe}-{config.label}"


def _with_number(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number}")


def _numbers(path: Path) -> Iterator[int]:
    """Yield the numbers of the directories `path` (1), `path-2`, `path-3`, ... that exist."""
    pattern = re.compile(re.escape(path.name) + r"(?:-([2-9]|[1-9]\d+))?")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        if match := pattern.fullmatch(other.name):
            yield int(match[1] or 1)


def _make_numbered(path: Path) -> Path:
    """Make the directory `path`, or else `path-2`, `path-3`, ..., after the highest number."""
    while True:
        number = max(_numbers(path), default=0) + 1
        candidate = path if number == 1 else _with_number(path, number)
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue  # another process has just made it
        return candidate
