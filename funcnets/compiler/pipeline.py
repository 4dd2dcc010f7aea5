"""The pipeline of `jit`: all that happens to a function, in order, for each back end.

1. Trace: the function is run on fake tensors, and its operations are recorded as a graph, while
   lowerings replace the ones that the target runs badly (`trace.record_function`).
2. Passes edit the graph, in the order that stands below.
   Each tells whether it changed the graph, which is then verified if FUNCNETS_DEBUG asks for it.
3. Execute: the graph is run as it is, or compiled by inductor (`backends.select.compile_graph`).
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from funcnets.compiler.autocast import without_autocast
from funcnets.compiler.backends.inductor import pin_gradient_strides, spell_out_factors
from funcnets.compiler.backends.select import Backend
from funcnets.compiler.errors import FormatError
from funcnets.compiler.graph.compilation import AfterPass, Compilation, Pass
from funcnets.compiler.kernels import build
from funcnets.compiler.loops.grouping import flatten_vectors, repeat_conversions
from funcnets.compiler.loops.lower import fuse_loops
from funcnets.compiler.lowerings import Lowering, Watch, unwatched
from funcnets.compiler.passes.donate import donate
from funcnets.compiler.passes.fuse import fuse_operations, fuse_scales, fuse_stored_statistics
from funcnets.compiler.passes.purity import check_purity
from funcnets.compiler.passes.reuse_memory import reuse_memory
from funcnets.compiler.passes.simplify import remove_dead_code, share_conversions
from funcnets.compiler.passes.views import relax_views, spell_out_copies
from funcnets.compiler.trace import record_function
from funcnets.compiler.verify import verifier

Observe = Callable[[Compilation], AfterPass | None]

# Every back end begins with these two groups; `Jitted.trace` shows their result.
CLEANING: tuple[Pass, ...] = (
    check_purity,
    spell_out_copies,
    remove_dead_code,
    share_conversions,
)
FUSION: tuple[Pass, ...] = (
    fuse_operations,
    remove_dead_code,  # sums that a fusion replaced are no statistics any more
    fuse_stored_statistics,
    remove_dead_code,
)

# Then each back end goes on with its own.
LOOPS: tuple[Pass, ...] = (
    repeat_conversions,
    flatten_vectors,
    remove_dead_code,
    fuse_loops,
    remove_dead_code,
)
BACKEND_PASSES: dict[Backend, tuple[Pass, ...]] = {
    "graph": (
        fuse_scales,
        remove_dead_code,
        donate,
        relax_views,
        reuse_memory,
    ),
    "native": (
        *LOOPS,
        donate,
        relax_views,
        reuse_memory,
    ),
    "inductor": (
        donate,
        spell_out_factors,
        pin_gradient_strides,
    ),
}
# `lowerings=None` leaves these out too.
OPTIONAL: frozenset[Pass] = frozenset((fuse_operations, fuse_stored_statistics, fuse_scales))


def trace(
    function: Callable[..., Any],
    leaves: Sequence[Tensor],
    lowerings: Sequence[Lowering],
    watch: Watch = unwatched,
    observe: Observe = verifier,
) -> Compilation:
    """Record `function(*leaves)` as a graph, and run the passes that come first.

    `observe` is given the recorded graph, and returns a function to call after each pass, or None.

    Raises:
        TraceError: where the function branches on a tensor's value, returns something that is no
            tensor, writes to an argument, or draws from torch's hidden generator.
    """
    with _uncollected():
        try:
            return _trace(function, leaves, lowerings, watch, observe)
        except FormatError:
            return _trace(function, leaves, (), watch, observe)


def _trace(
    function: Callable[..., Any],
    leaves: Sequence[Tensor],
    lowerings: Sequence[Lowering],
    watch: Watch,
    observe: Observe,
) -> Compilation:
    compilation = record_function(function, leaves, lowerings, watch)
    with without_autocast():
        compilation.after_pass = observe(compilation)
        run_passes(compilation, (*CLEANING, *FUSION))
    return compilation


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause garbage collection, which would search the many objects of a graph again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def finish(compilation: Compilation, backend: Backend, donated: Sequence[int]) -> None:
    """Run the passes of a back end, which may write outputs to the inputs at `donated`."""
    if backend == "native" and not build.is_available():
        backend = "graph"  # there is no C++ compiler
    compilation.donated = tuple(donated)
    with without_autocast():
        run_passes(compilation, BACKEND_PASSES[backend])


def run_passes(compilation: Compilation, passes: Sequence[Pass]) -> None:
    """Run passes in order, without the optional ones if there are no lowerings."""
    for each in passes:
        if each in OPTIONAL and not compilation.is_lowered:
            continue
        if is_changed := each(compilation):
            compilation.graph_changed()
        if compilation.after_pass is not None:
            compilation.after_pass(compilation, each.__name__, is_changed)
