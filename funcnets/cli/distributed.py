"""Several processes at the command line: started, joined, and agreed on what they train."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer

import funcnets
from funcnets.cli.configuration import UsageError, check_range
from funcnets.cli.errors import error_line, exit_code, is_other_process, report
from funcnets.cli.options import FLAGS
from funcnets.parallel import JoinError, Processes, join, world_size
from funcnets.parallel.launch import launch
from funcnets.runs import Config, RunDirectory

LAUNCH = ".launch"  # in a run directory: which start of torchrun made it
MOST_PROCESSES = 1024  # of one machine


def start(count: int | None) -> None:
    """Start this command `count` times, unless torchrun did, and exit as they do.

    Raises UsageError for a number out of range, or another one than torchrun started.
    """
    if count is None:
        return
    check_range("--processes", count, 1, MOST_PROCESSES)
    if "WORLD_SIZE" not in os.environ and count > 1:
        raise typer.Exit(launch(count, ["-m", "funcnets", *sys.argv[1:]]))
    if count != world_size():
        raise UsageError(f"--processes is {count}, but torchrun started {world_size()}")


@contextmanager
def joined(device: str | None, timeout: float) -> Iterator[Processes]:
    """Join torchrun's processes.  Whatever fails is printed by one, and all exit with one code."""
    try:
        with join(device or ("cuda" if torch.cuda.is_available() else "cpu"), timeout=timeout) as p:
            try:
                yield p
            except typer.Exit:
                raise
            except Exception as error:
                if p.axis.size > 1:
                    # Torchrun ends the others as soon as one has gone, before they can say so.
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                explained, is_speaker = p.explain(error, exit_code(error))
                if is_speaker and p.is_first:
                    if explained is error:
                        raise
                    raise explained from error
                raise _quiet_exit(explained, is_speaker=is_speaker) from error
    except JoinError as error:
        if is_other_process():
            raise _quiet_exit(error, is_speaker=not error.is_repeated) from None
        raise


def _quiet_exit(error: Exception, *, is_speaker: bool) -> typer.Exit:
    """Return the exit of a process other than the first; `is_speaker`: print the error before."""
    if is_speaker:
        report(error_line(error))
    return typer.Exit(exit_code(error))


def check_agreement(processes: Processes, values: Mapping[str, Any]) -> None:
    """Raise UsageError unless `values`, each with its name, are the same in all processes."""
    first, *others = processes.gather(dict(values))
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise UsageError(
                    f"{name} is {value} in rank 0 and {other[name]} in rank {rank}: start all "
                    "processes by the same line, with the same files"
                )


def check_config(processes: Processes, config: Config) -> None:
    """Raise UsageError unless all processes can train this, and the same, together."""
    size = processes.axis.size
    named = {FLAGS.get(field, field): value for field, value in asdict(config).items()}
    versions = {"funcnets": funcnets.__version__, "torch": torch.__version__}
    check_agreement(processes, named | versions)
    if config.batch_size < size:
        raise UsageError(
            f"--batch-size is {config.batch_size}, fewer images than the {size} processes: give "
            f"{size} or more, or start fewer processes"
        )
    if size > 1 and "mixup" in config.augment:
        raise UsageError(
            f"--augment is {config.augment}: mixup mixes images of the whole batch, of which "
            f"{size} processes have a part each; leave it out, or train in one process"
        )
    if size > 1 and config.accumulate and config.sync_batch_norm:
        raise UsageError(
            f"--accumulate is {config.accumulate}: in {size} processes it needs --no-sync-bn"
        )
    if size > 1 and config.device.startswith("cuda:"):
        raise UsageError(
            f"--device is {config.device}, one GPU for {size} processes: give --device cuda, of "
            "which each process takes its own"
        )


def make_directory(processes: Processes, config: Config, path: Path | None) -> RunDirectory:
    """Return the new run directory that rank 0 makes."""
    size = processes.axis.size

    def make() -> RunDirectory | None:
        if not processes.is_first:
            return None
        directory = RunDirectory.create(config, path, processes=size)
        if size > 1:
            (directory.path / LAUNCH).write_text(_launch(), encoding="utf-8")
        return directory

    own = processes.together(make)
    made = processes.gather(own and own.path)[0]
    return own or RunDirectory(made or "")


def begun_before(processes: Processes, config: Config, path: Path | None) -> Path | None:
    """Return the run directory of this launch, if torchrun starts its processes once more."""

    def find() -> Path | None:
        if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) or not processes.is_first:
            return None
        directory = RunDirectory.newest(config) if path is None else RunDirectory(path)
        mark = directory.path / LAUNCH
        return (
            directory.path
            if mark.is_file() and mark.read_text(encoding="utf-8") == _launch()
            else None
        )

    return processes.gather(processes.together(find))[0]


def _launch() -> str:
    """Return what tells a start of torchrun from others: its name, machine and process."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.uname().nodename} {os.getppid()}"
