"""What `jit` writes anew in a network's step, against what that replaces."""

import copy
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, fx

from funcnets import timing
from funcnets.bench.cases import Case
from funcnets.bench.contenders import BACKENDS
from funcnets.bench.rewrites import Rewrite, arguments, compilation_of, empty, rewrites
from funcnets.compiler.backends import heap
from funcnets.compiler.backends.select import Backend, Executable, compile_graph, usual_backend
from funcnets.compiler.pipeline import LOOPS, run_passes

MOST_SHAPES = 6  # in a row of the table


class Lowered(NamedTuple):
    """One rewrite of arguments of one shape."""

    network: str
    batch_size: int
    precision: str
    lowering: str
    shapes: str  # of the tensors that it takes
    calls: int  # a step
    column: str  # how the rewrite was run
    operation_ms: float  # median of what is replaced
    rewrite_ms: float  # median of the rewrite
    ratio: float  # how many times faster the rewrite is


def measure(
    case: Case, precision: str, columns: Sequence[str], *, rounds: int, seconds: float | None = None
) -> list[Lowered]:
    """Time what a training step of `case` has rewritten against what that was, all in turns."""
    rows = []
    backends = {
        column: BACKENDS[column] or usual_backend(case.device)
        for column in columns
        if column in BACKENDS
    }
    for rewrite, calls in rewrites(case, precision):
        functions = {
            column: _executable(rewrite.after, backend)
            for column, backend in backends.items()
            if rewrite.applies(backend)
        }
        if not functions:
            continue
        before, after = inputs(rewrite)
        turns = {column: partial(function, *after) for column, function in functions.items()}
        turns["operation"] = partial(compile_graph(rewrite.before, "graph"), *before)
        with heap.kept():  # as in a step
            for turn in turns.values():
                turn()
            times = timing.medians(timing.interleave(turns, rounds, seconds=seconds))
        what = (case.network, case.batch_size, precision, rewrite.name, _shapes(after), calls)
        expected = times.pop("operation")
        rows += [
            Lowered(*what, column, 1e3 * expected, 1e3 * taken, expected / taken)
            for column, taken in times.items()
        ]
    return rows


def _executable(graph: fx.GraphModule, backend: Backend) -> Executable:
    compilation = compilation_of(copy.deepcopy(graph))
    if backend == "native":
        run_passes(compilation, LOOPS)
    return compile_graph(compilation.module, backend)


def _shapes(tensors: Sequence[Tensor]) -> str:
    """Each shape once, with how many tensors have it."""
    counts = Counter("×".join(map(str, tensor.shape)) for tensor in tensors)
    texts = [shape if n == 1 else f"{shape} ({n})" for shape, n in counts.items()]
    return ", ".join(texts[:MOST_SHAPES] + ["…"] * (len(texts) > MOST_SHAPES))


def inputs(rewrite: Rewrite) -> tuple[list[Tensor], list[Tensor]]:
    """Random numbers for both sides of a rewrite, each in the memory format that it is given."""
    before = [filled(fake) for fake in arguments(rewrite.before)]
    wanted = zip(before, arguments(rewrite.after), strict=True)
    return before, [
        x if x.stride() == fake.stride() else empty(fake).copy_(x) for x, fake in wanted
    ]


def filled(fake: Tensor) -> Tensor:
    """A tensor of random numbers with the layout of a fake one."""
    real = empty(fake)
    memory = real.as_strided((real.untyped_storage().nbytes() // real.itemsize,), (1,), 0)
    if real.is_floating_point():
        memory.uniform_()
    else:
        memory.zero_()
    return real
