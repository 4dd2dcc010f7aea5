"""Throughput on a GPU: steps that follow each other without a wait, timed by events on the device.

The columns are timed one after another, each alone in the memory of the device.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import torch

from funcnets.bench.cases import Case
from funcnets.bench.contenders import GPU_COLUMNS, MODULES, MODULES_IN_GRAPHS, Contender
from funcnets.bench.table import Unit

LAP_SECONDS = 0.05  # of steps between two events
MOST_STEPS = 400  # in a lap
HOST_STEPS = 4  # started in turn on an idle device; more could fill its queue, and then wait
WARM_UP = 3  # steps: the first compiles, and the second or third is captured as a CUDA graph


class DeviceTiming(NamedTuple):
    """The throughput of one step on a GPU."""

    network: str
    batch_size: int
    side: Annotated[int, Unit("pixels")]
    precision: str
    column: str
    first_step: Annotated[float, Unit("s")]  # with what the compilers' caches lacked
    median: Annotated[float, Unit("examples/s")]
    best: Annotated[float, Unit("examples/s")]
    host: Annotated[float, Unit("ms")]  # median, until the host has started a step
    memory: Annotated[float, Unit("MB")]  # peak of what is allocated
    ratio: float | None  # of medians, to the fastest module at this precision; None without one
    tflops: Annotated[float, Unit("TFLOP/s")]  # counted as direct convolutions


class _Measured(NamedTuple):
    first_step: float
    laps: list[float]  # seconds a step, on the device
    hosts: list[float]
    memory: int


def time_steps(
    case: Case,
    columns: Sequence[str],
    precisions: Sequence[str],
    *,
    operations: int,
    rounds: int,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[DeviceTiming]:
    """Yield a row for each column at each precision, whose ratio is to the modules before it.

    Modules come first.  A column that fails is reported and has no row.  `operations` are those of
    a step.
    """
    peers = MODULES | MODULES_IN_GRAPHS
    ordered = [name for name in peers if name in columns]
    ordered += [name for name in columns if name not in peers]
    for precision in precisions:
        best_peer: float | None = None
        for column in ordered:
            try:
                measured = _measure(GPU_COLUMNS[column], case, precision, rounds)
            except Exception as error:  # what a compiler may raise
                lines = str(error).strip().splitlines() or [type(error).__name__]
                report(f"{case.network}, {column}, {precision}: failed: {lines[0]}")
                continue
            finally:
                _free()
            seconds = statistics.median(measured.laps)
            if column in peers:
                best_peer = min(best_peer or seconds, seconds)
            yield DeviceTiming(
                *case[:3],
                precision,
                column,
                measured.first_step,
                case.batch_size / seconds,
                case.batch_size / min(measured.laps),
                1e3 * statistics.median(measured.hosts),
                measured.memory / 1e6,
                best_peer and best_peer / seconds,
                operations / seconds / 1e12,
            )


def _measure(
    make: Callable[[Case, str], Contender], case: Case, precision: str, rounds: int
) -> _Measured:
    torch.cuda.reset_peak_memory_stats(case.device)
    step = make(case, precision)
    started = time.perf_counter()
    step()
    torch.cuda.synchronize(case.device)
    first_step = time.perf_counter() - started
    for _ in range(WARM_UP):
        step()
    count = max(1, min(MOST_STEPS, int(LAP_SECONDS / lap(step, 2, case.device))))
    laps = [lap(step, count, case.device) for _ in range(rounds)]
    hosts = [_host_time(step, case.device) for _ in range(rounds)]
    return _Measured(first_step, laps, hosts, torch.cuda.max_memory_allocated(case.device))


def lap(step: Callable[[], object], count: int, device: str) -> float:
    """Return the seconds of a step between two events on the device, of `count` without a wait."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        begun.record()
        for _ in range(count):
            step()
        ended.record()
        ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3 / count


def _host_time(step: Callable[[], object], device: str) -> float:
    """Return the seconds that the host takes to start a step on an idle device."""
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(HOST_STEPS):
        step()
    return (time.perf_counter() - started) / HOST_STEPS


def _free() -> None:
    """Give back what the last column held: its graph, its compiled code and its memory."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
