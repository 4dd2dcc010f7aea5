"""Steps timed in turns: examples a second, against the fastest peer and against the machine."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets import models, summary, timing
from funcnets.bench.cases import Case
from funcnets.bench.contenders import COLUMNS, MODULES, Step, available

# A forward pass, the gradient of the input and that of the weights; a multiply-add is two.
OPERATIONS_PER_MULTIPLY_ADD = 3 * 2
SMALLEST_SIDE, LARGEST_SIDE = 256, 2048  # of the matrices
MATMUL = "matmul"

Key = tuple[str, str]  # precision, column


class Timing(NamedTuple):
    """How fast one step is."""

    network: str
    batch_size: int
    side: int
    rounds: int
    precision: str
    column: str
    first_step: float  # seconds, with compilation as far as the compiler's cache lacked it
    median: float  # examples a second
    best: float  # examples a second
    ratio: float | None  # of medians, to the fastest module at this precision; None without one
    gflops: float  # by the median step, 10⁹ operations a second, counted as direct convolutions
    matmul_gflops: float  # of a matrix product, by the median of the same rounds


class Mean(NamedTuple):
    """A column's ratios over the networks."""

    precision: str
    column: str
    networks: int
    geometric_mean: float
    least: float


def measure(
    case: Case,
    columns: Sequence[str],
    precisions: Sequence[str],
    *,
    rounds: int,
    seconds: float | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Time a step of each column at each precision on one network, all in turns.

    No round begins more than `seconds` after the first.  Every step runs twice before, and
    `report` is told when the first is done.
    """
    steps: dict[Key, Step] = {}
    first: dict[Key, float] = {}
    for precision in precisions:
        for column in available(columns, case.network):
            step = steps[precision, column] = COLUMNS[column](case, precision)
            started = time.perf_counter()
            step()
            taken = first[precision, column] = time.perf_counter() - started
            report(f"{case.network}, {column}, {precision}: first step after {taken:.1f} s")
            step()
    products = {precision: matrix_product(case, precision) for precision in precisions}
    turns = steps | {(name, MATMUL): product.run for name, product in products.items()}
    taken_by = timing.interleave(turns, rounds, seconds=seconds)
    operations = {(name, MATMUL): product.operations for name, product in products.items()}
    operations |= dict.fromkeys(steps, _operations(case))
    return [_timing(case, key, first[key], taken_by, operations) for key in steps]


def _operations(case: Case) -> int:
    """Of a training step, counted as direct convolutions."""
    net, _ = models.get(case.network)
    forward = summary.summarize(net, case.shape, depth=0)[-1].multiply_adds
    return OPERATIONS_PER_MULTIPLY_ADD * forward


class Product(NamedTuple):
    """A product of two square matrices."""

    run: Step
    operations: int


def matrix_product(case: Case, precision: str) -> Product:
    """The smallest product, of a power of two a side, that takes 20 ms or has the largest side.

    Smaller ones don't reach the machine's peak; larger ones take seconds where bfloat16 is slow.
    """
    side, dtype = SMALLEST_SIDE, getattr(torch, precision)
    while True:
        matrix = torch.linspace(0, 1, side, device=case.device).expand(side, side).to(dtype)
        product = Product(_squared(matrix.contiguous()), 2 * side**3)
        product.run()
        (taken,) = timing.interleave({MATMUL: product.run}, 1)[MATMUL]
        if taken >= 0.02 or side >= LARGEST_SIDE:
            return product
        side *= 2


def _squared(matrix: Tensor) -> Step:
    return lambda: float((matrix @ matrix)[0, 0])


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


def means(timings: Sequence[Timing]) -> list[Mean]:
    """The geometric mean of the ratios of each column at each precision, over the networks."""
    ratios: dict[Key, list[float]] = defaultdict(list)
    for timed in timings:
        if timed.ratio is not None:
            ratios[timed.precision, timed.column].append(timed.ratio)
    return [
        Mean(*key, len(values), statistics.geometric_mean(values), min(values))
        for key, values in ratios.items()
    ]
