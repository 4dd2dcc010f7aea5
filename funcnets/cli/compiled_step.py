"""Training steps that are compiled where that pays, and their speed."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from funcnets.cli.interrupt import Interrupt
from funcnets.cli.reporters import Reporter
from funcnets.compiler import CompileError, keep_memory
from funcnets.compiler.backends.select import Backend
from funcnets.compiler.kernels import build
from funcnets.parallel import Axis

ONE_PROCESS = Axis()


class CompiledStep:
    """A step under `jit`: compiled for batches of `size`, and for others if that is quick.

    PyTorch's compiler takes longer for the short last batch, which comes once an epoch, than it
    could save; that batch runs as a graph.  If PyTorch's compiler fails, there is a warning and
    every batch does, except after a signal, which may have stopped the compiler too.

    Args:
        name: what the reporter calls it, such as `the float32 training step`.
        function: the step; its last argument is the batch, images and labels.
        compile: `compile(function, backend=...)` as `jit` does it, or `ensemble.jit_step`.
        size: the batch size that is compiled for.
        backend: that of `jit`; None to call the function as it is.
        reporter: told what is compiled, and why something isn't.
        interrupt: the signals that were noted.
        axis: the processes among which each batch is divided.

    Attributes:
        is_first: True if the last call was the first with its batch size.
        compile_seconds: how long the first call took that compiled.
        began: the time at which the last call began, by `time.perf_counter`.
        measured: the measurements of the last call.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        compile: Callable[..., Callable[..., Any]],
        size: int,
        backend: Backend | None,
        reporter: Reporter,
        interrupt: Interrupt,
        axis: Axis = ONE_PROCESS,
    ) -> None:
        self.name, self.size, self.reporter, self.interrupt = name, size, reporter, interrupt
        self.is_first, self.compile_seconds, self.axis = False, 0.0, axis
        self.began, self.measured = 0.0, dict[str, Tensor]()
        keep_memory()
        self._sizes: set[int] = set()
        self._backend = backend
        self._compiles = backend not in ("graph", None)
        if backend == "native" and (reason := build.reason_unavailable()):
            reporter.warn(f"{name} will be slower, as C++ can't be compiled here: {reason}")
        quick: Backend | None = "graph" if backend == "inductor" else backend
        self._uncompiled = function if quick is None else compile(function, backend=quick)
        self._compiled = self._uncompiled
        if backend != quick:
            self._compiled = compile(function, backend=backend)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; its last argument is the batch of all processes."""
        self.began = time.perf_counter()
        result = self._call(arguments)
        self.measured = result[1]
        return result

    def _call(self, arguments: tuple[Any, ...]) -> Any:
        *rest, batch = arguments
        size = len(batch[1])
        # Whether it is compiled depends on the whole batch: else processes would differ in the
        # last digits of their parameters.
        if self.axis.size > 1:
            arguments = (*rest, tuple(map(self.axis.shard, batch)))
        self.is_first = size not in self._sizes
        self._sizes.add(size)
        if size != self.size or not self._compiles:
            return self._uncompiled(*arguments)
        return self._compile(arguments) if self.is_first else self._compiled(*arguments)

    def _compile(self, arguments: tuple[Any, ...]) -> Any:
        started = time.perf_counter()
        try:
            with self.reporter.compiling(self.name):
                result = self._compiled(*arguments)
        except CompileError as error:
            if self.interrupt.signal is not None or self._backend != "inductor":
                raise  # `graph` has the same kernels in C++
            self.reporter.warn(f"{error}; going on with --backend graph")
            self._compiles = False
            return self._uncompiled(*arguments)
        self.compile_seconds = time.perf_counter() - started
        return result


class Taken(NamedTuple):
    """Seconds that a call of steps took: until its batch was gathered, and from then on."""

    steps: int
    examples: int
    data_seconds: float
    step_seconds: float


class Speed:
    """Examples a second, and what their steps spent the time on.

    Attributes:
        data_seconds: until batches were gathered.
        step_seconds: from then on.
    """

    def __init__(self) -> None:
        self.data_seconds = self.step_seconds = 0.0
        self._examples = self._steps = 0

    def add(self, taken: Taken | None) -> None:
        """Add a call of steps; None for one that doesn't count, as it compiled."""
        if taken is not None:
            self.data_seconds += taken.data_seconds
            self.step_seconds += taken.step_seconds
            self._examples += taken.examples
            self._steps += taken.steps

    @property
    def rate(self) -> float | None:
        """Examples a second so far; None before the first step that counts."""
        return self._examples / (self.data_seconds + self.step_seconds) if self._steps else None

    def mean(self, seconds: float) -> float | None:
        """Return `seconds` for each step; None before the first one that counts."""
        return round(seconds / self._steps, 6) if self._steps else None


def timed(steps: Iterator[Any], step: CompiledStep) -> Iterator[tuple[Any, Taken | None]]:
    """Yield the same progress, and what it took: None for the first call of each batch size."""
    before: Any = None
    started = time.perf_counter()
    for progress in steps:
        ended = time.perf_counter()
        is_same_epoch = before is not None and before.epoch == progress.epoch
        batches, examples = (before.batch, before.examples) if is_same_epoch else (0, 0)
        done = (progress.batch - batches, progress.examples - examples)
        taken = Taken(*done, step.began - started, ended - step.began)
        yield progress, None if step.is_first else taken
        before, started = progress, time.perf_counter()
