"""Times of what `jit` rewrites in a training step, and of the operations that it replaces."""

import copy
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple

from torch import Tensor, fx

from funcnets import timing
from funcnets.bench.cases import Case
from funcnets.bench.contenders import BACKENDS
from funcnets.bench.rewrites import Rewrite, arguments, compilation_of, empty, find_rewrites
from funcnets.bench.table import Unit
from funcnets.compiler.backends import heap
from funcnets.compiler.backends.select import Backend, Executable, compile_graph, usual_backend
from funcnets.compiler.pipeline import LOOPS, run_passes

MAX_SHAPES = 6  # listed in a row of the table


class RewriteTiming(NamedTuple):
    """The time of one rewrite, for arguments of given shapes."""

    network: str
    batch_size: int
    precision: str
    lowering: str  # or the rule of fusion, or `loops`
    shapes: str  # of its arguments
    calls: int  # per step
    column: str  # the back end that ran the rewrite
    operation_ms: Annotated[float, Unit("ms", "operation")]  # median, of what is replaced
    rewrite_ms: Annotated[float, Unit("ms", "rewrite")]  # median
    ratio: float  # of the two times: how many times faster the rewrite is


def time_rewrites(
    case: Case, precision: str, columns: Sequence[str], *, rounds: int, seconds: float | None = None
) -> list[RewriteTiming]:
    """Time all that `jit` rewrites in a step of `case`, and what it replaces, in turns."""
    rows = []
    names = [column for column in columns if column in BACKENDS]
    backends = {name: BACKENDS[name] or usual_backend(case.device) for name in names}
    for rewrite, calls in find_rewrites(case, precision):
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
        heap.keep_memory()
        with heap.kept():  # as while a step runs
            for turn in turns.values():
                turn()
            times = timing.medians(timing.interleave(turns, rounds, seconds=seconds))
        what = (case.network, case.batch_size, precision, rewrite.name, _shapes(after), calls)
        expected = times.pop("operation")
        rows += [
            RewriteTiming(*what, column, 1e3 * expected, 1e3 * taken, expected / taken)
            for column, taken in times.items()
        ]
    return rows


def _executable(graph: fx.GraphModule, backend: Backend) -> Executable:
    compilation = compilation_of(copy.deepcopy(graph))
    if backend == "native":
        run_passes(compilation, LOOPS)
    return compile_graph(compilation.module, backend)


def _shapes(tensors: Sequence[Tensor]) -> str:
    """Return each shape once, with the number of tensors that have it."""
    counts = Counter("×".join(map(str, tensor.shape)) for tensor in tensors)
    texts = [shape if n == 1 else f"{shape} ({n})" for shape, n in counts.items()]
    return ", ".join(texts[:MAX_SHAPES] + ["…"] * (len(texts) > MAX_SHAPES))


def inputs(rewrite: Rewrite) -> tuple[list[Tensor], list[Tensor]]:
    """Return random arguments for both sides of a rewrite, each in the memory format it expects."""
    before = [filled(fake) for fake in arguments(rewrite.before)]
    wanted = zip(before, arguments(rewrite.after), strict=True)
    return before, [
        x if x.stride() == fake.stride() else empty(fake).copy_(x) for x, fake in wanted
    ]


def filled(fake: Tensor) -> Tensor:
    """Return a tensor of random numbers with the shape, strides and dtype of a fake tensor."""
    real = empty(fake)
    memory = real.as_strided((real.untyped_storage().nbytes() // real.itemsize,), (1,), 0)
    if real.is_floating_point():
        memory.uniform_()
    else:
        memory.zero_()
    return real
