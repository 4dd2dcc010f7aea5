"""Start processes that train together, by PyTorch's own launcher."""

import logging
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `python ARGUMENTS` in `count` processes on this machine, as torchrun does.

    Return the exit code of the one that failed first, or 0; 128 plus its number for a signal, which
    the processes are sent as well, with 30 s to end.  The processors are divided among them.
    """
    # Each process would take all processors; torchrun gives one to each, and says so at length.
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
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
    try:
        with _without_log("torch.distributed.elastic"):
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


@contextmanager
def _without_log(package: str) -> Iterator[None]:
    """Around code whose processes say by themselves what goes wrong: drop a package's log."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(package)]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
