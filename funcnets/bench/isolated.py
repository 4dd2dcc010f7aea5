"""Training steps in processes of their own: time to the first step, and peak memory.

python -m funcnets.bench.isolated '["lenet_bn", 256, 28, "cpu"]' jit float32
"""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple

import torch

from funcnets.bench.cases import Case
from funcnets.bench.contenders import COLUMNS, GPU_COLUMNS
from funcnets.bench.table import Unit

STEPS_AFTER_FIRST = 3
PROGRAM = "import sys; from funcnets.bench import isolated; isolated.main(*sys.argv[1:])"
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class ProcessCost(NamedTuple):
    """Time and resident memory of a process that makes some steps; on CUDA, allocated memory."""

    first_step: float  # seconds to the end of the first step, without imports
    idle: int  # bytes before it
    compiling: int  # peak in bytes, to the end of the first step
    stepping: int  # peak in bytes, during the steps after the first


class FirstStep(NamedTuple):
    """Time to the end of the first step, without imports."""

    network: str
    batch_size: int
    side: Annotated[int, Unit("pixels")]
    precision: str
    column: str
    cold: Annotated[float, Unit("s")]  # with empty caches of compilers
    warm: Annotated[float, Unit("s")]  # with the caches of a process before it


class Memory(NamedTuple):
    """Resident memory of a process that makes some steps; on CUDA, allocated memory."""

    network: str
    batch_size: int
    side: Annotated[int, Unit("pixels")]
    precision: str
    column: str
    idle: Annotated[float, Unit("MB")]  # after the imports
    compiling: Annotated[float, Unit("MB")]  # peak, to the end of the first step
    stepping: Annotated[float, Unit("MB")]  # peak, during the steps after it
    ratio: float | None  # of `stepping` to that of the eager module; None without one


def measure_process(
    case: Case,
    column: str,
    precision: str,
    cache: str | None = None,
    timeout: float | None = None,
) -> ProcessCost:
    """Make some steps in a new process; its compilers keep their results in the directory `cache`.

    Raises RuntimeError with the last line that the process printed, if it fails, or if it takes
    longer than `timeout` seconds.
    """
    command = [sys.executable, "-c", PROGRAM, json.dumps(case), column, precision]
    caches = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"), cache) if cache else {}
    environment = {**os.environ, **caches}
    step = f"{case.network}, {column}, {precision}"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{step}: took longer than {timeout:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip() or "the process was killed").splitlines()[-1]
        raise RuntimeError(f"{step}: the step failed: {last}")
    return ProcessCost(*json.loads(done.stdout.splitlines()[-1]))


def fill_caches(steps: Sequence[tuple[Case, str, str]], seconds: float = math.inf) -> None:
    """Compile steps, a case, column and precision each, in processes that run side by side.

    What they compile stays in the compilers' caches.  A step that fails is left to its caller, and
    so is one that isn't done in `seconds` from now on.
    """
    ends = time.monotonic() + seconds

    def fill(step: tuple[Case, str, str]) -> None:
        left = ends - time.monotonic()
        if left > 0:
            with contextlib.suppress(RuntimeError):
                measure_process(*step, timeout=None if math.isinf(left) else left)

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        list(pool.map(fill, steps))


def time_first_step(case: Case, column: str, precision: str) -> FirstStep:
    """Time the first step in two processes, with empty caches and with those of the first."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (measure_process(case, column, precision, cache).first_step for _ in range(2))
    return FirstStep(*case[:3], precision, column, cold, warm)


def measure_memory(case: Case, columns: list[str], precision: str) -> list[Memory]:
    """Measure the memory of each column's step, a process each."""
    costs = {column: measure_process(case, column, precision) for column in columns}
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
    status = _STATUS.read_text(encoding="utf-8") if _STATUS.exists() else ""
    if found := re.search(r"VmHWM:\s*(\d+) kB", status):
        return 1024 * int(found[1])
    import resource  # which Windows doesn't have

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak(device: str) -> None:
    """Restart the measurement of the peak, where the system can: on Linux and on CUDA."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5", encoding="utf-8")


def main(case: str, column: str, precision: str) -> None:
    """Make some steps, and print their `ProcessCost` as JSON."""
    given = Case(*json.loads(case))
    started, idle = time.perf_counter(), _peak(given.device)
    columns = COLUMNS if given.device == "cpu" else GPU_COLUMNS
    step = columns[column](given, precision)
    step()
    if given.device != "cpu":
        torch.cuda.synchronize(given.device)
    seconds, peak = time.perf_counter() - started, _peak(given.device)
    _reset_peak(given.device)
    for _ in range(STEPS_AFTER_FIRST):
        step()
    print(json.dumps(ProcessCost(seconds, idle, peak, _peak(given.device))))
