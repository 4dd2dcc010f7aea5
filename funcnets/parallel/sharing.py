"""Tensors that the processes of a machine have in memory once."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from funcnets.parallel.processes import Processes


def share_in_memory(processes: Processes, make: Callable[[], Any]) -> Any:
    """Return `make()`, a tree of tensors on the CPU, which one process of each machine calls.

    It writes them to a temporary file, which all processes of the machine map: the pages are in
    memory once, until a process writes to its copy.  A process alone keeps what it made.
    """
    if processes.axis.size == 1:
        return make()
    is_maker = processes.local_rank == 0
    path = processes.together(lambda: _write(make()) if is_maker else None)
    machine = os.environ.get("GROUP_RANK", socket.gethostname())
    paths = {name: each for name, each in processes.gather((machine, path)) if each is not None}
    try:
        return processes.together(lambda: torch.load(paths[machine], mmap=True))
    finally:
        if path is not None:
            path.unlink()  # the maps stay


def _write(values: Any) -> Path:
    handle, name = tempfile.mkstemp(prefix="funcnets-", suffix=".pt")
    os.close(handle)
    try:
        torch.save(values, name)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)
