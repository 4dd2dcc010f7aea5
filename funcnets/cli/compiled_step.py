"""Training steps that are compiled where that pays, and their speed."""

import time
from collections.abc import Callable
from typing import Any

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


class Speed:
    """Examples a second, without the steps that were the first of their shape."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from nothing."""
        self._examples, self._seconds = 0, 0.0

    def add(self, examples: int, seconds: float) -> None:
        """Add a step."""
        self._examples, self._seconds = self._examples + examples, self._seconds + seconds

    @property
    def rate(self) -> float | None:
        """Examples a second so far; None before the first step that counts."""
        return self._examples / self._seconds if self._seconds else None
