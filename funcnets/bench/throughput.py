"""Throughput on a CPU: training steps, timed in turns with modules and with a matrix product."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import torch

from funcnets import models, summary, timing
from funcnets.bench.cases import Case
from funcnets.bench.contenders import COLUMNS, MODULES, Contender, available_columns
from funcnets.bench.on_device import DeviceTiming
from funcnets.bench.table import Unit
from funcnets.precision import POLICIES

# Two for a multiply-add, in the forward pass and in the gradients of input and weight.
OPERATIONS_PER_MULTIPLY_ADD = 3 * 2
SMALLEST_SIDE, LARGEST_SIDE = 256, 2048  # of the matrices of a matrix product
LEAST_PRODUCT_SECONDS = 0.02
MATMUL = "matmul"

Key = tuple[str, str]  # precision, column


class Timing(NamedTuple):
    """The throughput of one step."""

    network: str
    batch_size: int
    side: Annotated[int, Unit("pixels")]
    rounds: int
    precision: str
    column: str
    first_step: Annotated[float, Unit("s")]  # with what the compilers' caches lacked
    median: Annotated[float, Unit("examples/s")]
    best: Annotated[float, Unit("examples/s")]
    ratio: float | None  # of medians, to the fastest module at this precision; None without one
    gflops: Annotated[float, Unit("GFLOP/s", "step")]  # counted as direct convolutions
    matmul_gflops: Annotated[float, Unit("GFLOP/s", "matmul")]  # of a matrix product


class Mean(NamedTuple):
    """The ratios of a column over the networks."""

    precision: str
    column: str
    networks: int
    geometric_mean: float
    least: float


def time_steps(
    case: Case,
    columns: Sequence[str],
    precisions: Sequence[str],
    *,
    rounds: int,
    seconds: float | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Time a step of each column at each precision on one network, all in turns.

    No round begins more than `seconds` after the first.  Each step runs twice before it is timed;
    `report` is called with a line of text after its first run.
    """
    steps: dict[Key, Contender] = {}
    first: dict[Key, float] = {}
    for precision in precisions:
        for column in available_columns(columns, case.network):
            step = steps[precision, column] = COLUMNS[column](case, precision)
            started = time.perf_counter()
            step()
            taken = first[precision, column] = time.perf_counter() - started
            report(f"{case.network}, {column}, {precision}: first step after {taken:.1f} s")
            step()
    matmuls = {precision: matrix_product(precision) for precision in precisions}
    turns = steps | {(name, MATMUL): matmul.run for name, matmul in matmuls.items()}
    taken_by = timing.interleave(turns, rounds, seconds=seconds)
    operations = {(name, MATMUL): matmul.operations for name, matmul in matmuls.items()}
    operations |= dict.fromkeys(steps, operations_of(case))
    return [_timing(case, key, first[key], taken_by, operations) for key in steps]


def operations_of(case: Case) -> int:
    """Return the operations of a training step, counted as direct convolutions."""
    net, _ = models.get(case.network)
    forward = summary.summarize(net, case.shape, depth=0)[-1].multiply_adds
    return OPERATIONS_PER_MULTIPLY_ADD * forward


class MatrixProduct(NamedTuple):
    """A product of two square matrices."""

    run: Contender
    operations: int


def matrix_product(precision: str) -> MatrixProduct:
    """Return the smallest product that takes `LEAST_PRODUCT_SECONDS`, or the largest one.

    The sides of the matrices are powers of two.  Smaller products don't reach the peak of the
    machine; larger ones take seconds where bfloat16 is slow.
    """
    policy, side = POLICIES[precision], SMALLEST_SIDE
    while True:
        matrix = torch.linspace(0, 1, side).expand(side, side).to(policy.compute)
        run = partial(torch.matmul, *2 * [matrix.contiguous()])
        run()
        (taken,) = timing.interleave({MATMUL: run}, 1)[MATMUL]
        if taken >= LEAST_PRODUCT_SECONDS or side >= LARGEST_SIDE:
            return MatrixProduct(run, 2 * side**3)
        side *= 2


def _timing(
    case: Case,
    key: Key,
    first: float,
    taken: dict[Key, list[float]],
    operations: dict[Key, int],
) -> Timing:
    precision, column = key
    medians = timing.medians(taken)
    peers = [medians[precision, name] for name in MODULES if (precision, name) in medians]
    product = (precision, MATMUL)
    return Timing(
        *case[:3],
        rounds=len(taken[key]),
        precision=precision,
        column=column,
        first_step=first,
        median=case.batch_size / medians[key],
        best=case.batch_size / min(taken[key]),
        ratio=min(peers) / medians[key] if peers else None,
        gflops=operations[key] / medians[key] / 1e9,
        matmul_gflops=operations[product] / medians[product] / 1e9,
    )


def means(timings: Sequence[Timing | DeviceTiming]) -> list[Mean]:
    """Return the geometric means over networks of the ratios, by precision and column."""
    ratios: dict[Key, list[float]] = defaultdict(list)
    for timed in timings:
        if timed.ratio is not None:
            ratios[timed.precision, timed.column].append(timed.ratio)
    return [
        Mean(*key, len(values), statistics.geometric_mean(values), min(values))
        for key, values in ratios.items()
    ]
