"""Start processes that train together, by PyTorch's own launcher."""

import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

Result = TypeVar("Result")

THREADS = "OMP_NUM_THREADS"


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `python ARGUMENTS` in `count` processes on this machine, as torchrun does.

    Return the exit code of the one that failed first, or 0; 128 plus its number for a signal, which
    the processes are sent as well, with 30 s to end.  The processors are divided among them.
    """
    try:
        _launched(count, sys.executable, *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def call(count: int, function: Callable[..., Result], *arguments: Any) -> list[Result]:
    """Return `function(*arguments)` of each of `count` processes, in the order of ranks.

    They are started as by `launch`.  Function, arguments and results must be picklable.

    Raises RuntimeError if one fails, with the last line of what it raised.
    """
    try:
        results = _launched(count, function, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message: Any = failure.message
        text = message["message"] if isinstance(message, dict) else str(message)
        raise RuntimeError(f"rank {rank}: {text.strip().splitlines()[-1]}") from None
    return [results[rank] for rank in range(count)]


def _launched(count: int, entry: Any, *arguments: Any) -> dict[int, Any]:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        local_addr="localhost",
    )
    with _threads(count), _without_log("torch.distributed.elastic", "torch.multiprocessing"):
        results: dict[int, Any] = elastic_launch(config, entry)(*arguments)
    return results


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Around code that starts `count` processes: divide the processors, unless that is done.

    Each process would take all of them; torchrun gives one to each, and says so at length.
    """
    is_given = THREADS in os.environ
    os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // count)))
    try:
        yield
    finally:
        if not is_given:
            del os.environ[THREADS]


@contextmanager
def _without_log(*packages: str) -> Iterator[None]:
    """Around code whose processes say by themselves what goes wrong: drop the log of packages."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(packages)]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
