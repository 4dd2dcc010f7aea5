"""What a step costs in a process of its own: time to the first step, and memory.

python -m funcnets.bench.fresh '["lenet_bn", 256, 28, "cpu"]' jit float32
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from funcnets.bench.cases import Case
from funcnets.bench.contenders import COLUMNS

STEPS = 3
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """One step in a process of its own."""

    first_step: float  # seconds, from making the step to its end, without imports
    idle: int  # bytes resident before
    compiling: int  # bytes resident at most, to the end of the first step
    stepping: int  # bytes resident at most during the steps after the first


class FirstStep(NamedTuple):
    """Seconds to the end of the first step, from an empty compiler's cache and from a full one."""

    network: str
    batch_size: int
    side: int
    precision: str
    column: str
    cold: float
    warm: float


class Memory(NamedTuple):
    """Resident memory of a process that steps, in 10⁶ bytes (on CUDA: allocated)."""

    network: str
    batch_size: int
    side: int
    precision: str
    column: str
    idle: float  # after the imports
    compiling: float  # peak to the end of the first step
    stepping: float  # peak of the steps after it
    ratio: float | None  # of `stepping`, to that of the eager module; None without one


def cost(case: Case, column: str, precision: str, cache: str | None = None) -> Cost:
    """What a step costs in a new process, whose compiler keeps its results in `cache`.

    Raises RuntimeError with the last line that the process printed, if it fails.
    """
    command = [sys.executable, "-m", __name__, json.dumps(case), column, precision]
    caches = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"), cache) if cache else {}
    environment = {**os.environ, **caches}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "it was killed").splitlines()[-1]
        raise RuntimeError(f"{case.network}, {column}, {precision}: the step failed: {last}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def first_step(case: Case, column: str, precision: str) -> FirstStep:
    """The time to the first step, cold and warm."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (cost(case, column, precision, cache).first_step for _ in range(2))
    return FirstStep(*case[:3], precision, column, cold, warm)


def memory(case: Case, columns: list[str], precision: str) -> list[Memory]:
    """The memory of each column's step, against that of the eager module where it is among them."""
    costs = {column: cost(case, column, precision) for column in columns}
    eager = costs["eager"].stepping if "eager" in costs else None
    return [
        Memory(
            *case[:3],
            precision,
            column,
            idle=each.idle / 1e6,
            compiling=each.compiling / 1e6,
            stepping=each.stepping / 1e6,
            ratio=each.stepping / eager if eager else None,
        )
        for column, each in costs.items()
    ]


def _peak(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    if found := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text() if _STATUS.exists() else ""):
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_peak(device: str) -> None:
    """Let the peak be that from now on, where the system can: on Linux and on CUDA."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        _RESET.write_text("5")


def main(case: str, column: str, precision: str) -> None:
    """Run some steps, and print their `Cost` as JSON."""
    tried = Case(*json.loads(case))
    started, idle = time.perf_counter(), _peak(tried.device)
    step = COLUMNS[column](tried, precision)
    step()
    seconds, peak = time.perf_counter() - started, _peak(tried.device)
    _forget_peak(tried.device)
    for _ in range(STEPS):
        step()
    print(json.dumps(Cost(seconds, idle, peak, _peak(tried.device))))


if __name__ == "__main__":
    main(*sys.argv[1:])
