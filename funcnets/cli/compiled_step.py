"""The steps that the command line runs: compiled where possible, timed, and interruptible."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from signal import Signals
from types import FrameType
from typing import Any, Protocol

from funcnets import data, precision, train
from funcnets.compiler import CompileError, jit
from funcnets.compiler.backends.select import Backend
from funcnets.compiler.kernels import build
from funcnets.core import Layer
from funcnets.data import Dataset
from funcnets.precision import POLICIES
from funcnets.runs.config import Config
from funcnets.train import Prepare, TrainState


class Reporter(Protocol):
    """What is told while a training goes on.

    Attributes:
        unheard: whether nobody reads what is told any more.
    """

    unheard: bool

    def warn(self, text: str) -> None:
        """Something isn't as it should be."""

    def line(self, text: str) -> None:
        """Something that is good to know."""

    def compiling(self, what: str) -> AbstractContextManager[None]:
        """`what` is compiled inside this context."""

    def advance(self, progress: Any, examples_per_second: float | None) -> None:
        """A step is done, of one training or of all members of an ensemble."""

    def epoch(self, rows: Sequence[Any]) -> None:
        """An epoch is done, and its rows are measured."""


class Interrupt:
    """Notes the first SIGINT or SIGTERM, so that the step under way can end; a second one exits."""

    signal: Signals | None = None

    def __enter__(self) -> "Interrupt":
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = signal.Signals(number)


class Step:
    """A function under `jit`: compiled for batches of `size`, and for others where that is quick.

    The short last batch comes once an epoch: to compile it by PyTorch costs more than it can save.
    Where PyTorch's compiler fails this warns and goes on without it, except after a signal, which
    may have stopped the compiler too.  Without a `backend` the function is called as it is.
    """

    def __init__(
        self,
        what: str,
        function: Callable[..., Any],
        size: int,
        backend: Backend | None,
        reporter: Reporter,
        interrupt: Interrupt,
        donate_argnums: tuple[int, ...] = (),
        jit: Callable[..., Any] = jit,
        saved_as: str | None = None,
        tf32: bool = False,
    ) -> None:
        self.what, self.size, self.reporter, self.interrupt = what, size, reporter, interrupt
        self._backend = backend
        self._compiles = backend not in ("graph", None)
        if backend == "native" and not build.is_available():
            reporter.warn(
                f"{what} will be slower: no C++ compiler was found (g++, or CXX), or no place to "
                "write to (~/.cache, or XDG_CACHE_HOME)"
            )
        how: dict[str, Any] = {
            "donate_argnums": donate_argnums,
            "saved_as": saved_as,
            "tf32": tf32,
        }
        self._compiled = jit(function, backend=backend or "graph", **how)
        self._as_it_is = function
        if backend is not None:
            quick: Backend = "graph" if backend == "inductor" else backend
            self._as_it_is = jit(function, backend=quick, **how)
        self._sizes: set[int] = set()
        self.is_first = False  # whether the last call was the first with its batch size
        self.compile_seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; its last argument is the batch."""
        size = len(arguments[-1][1])
        self.is_first = size not in self._sizes
        self._sizes.add(size)
        if size != self.size or not self._compiles:
            return self._as_it_is(*arguments)
        return self._compile(arguments) if self.is_first else self._compiled(*arguments)

    def _compile(self, arguments: tuple[Any, ...]) -> Any:
        started = time.perf_counter()
        try:
            with self.reporter.compiling(self.what):
                result = self._compiled(*arguments)
        except CompileError as error:
            if self.interrupt.signal is not None or self._backend != "inductor":
                raise  # kernels in C++ are those of `graph` too
            self.reporter.warn(f"{error}; going on with --backend graph")
            self._compiles = False
            return self._as_it_is(*arguments)
        self.compile_seconds = time.perf_counter() - started
        return result


class Speed:
    """Examples a second, without the steps that were the first of their shape."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._examples, self._seconds = 0, 0.0

    def add(self, examples: int, seconds: float) -> None:
        """One more step."""
        self._examples, self._seconds = self._examples + examples, self._seconds + seconds

    @property
    def rate(self) -> float | None:
        """The examples a second so far; None before the first step that counts."""
        return self._examples / self._seconds if self._seconds else None


def evaluation_batch_size(count: int, limit: int) -> int:
    """The largest batch size up to `limit` that divides `count`: one shape, in no more memory."""
    return next(size for size in range(min(count, limit), 0, -1) if count % size == 0)


class Evaluation:
    """Loss and accuracy over all test images, by a step of one shape.

    Its graph runs as it is: it is a small part of an epoch, and compiling it costs more than that
    could save.
    """

    def __init__(self, config: Config, net: Layer, dataset: Dataset) -> None:
        self.batch = (dataset.test_images, dataset.test_labels)
        self.size = evaluation_batch_size(len(dataset.test_labels), config.batch_size)
        policy = POLICIES[config.precision]
        net = precision.cast(net, policy)
        function = self.function(net, partial(data.prepare, side=config.side))
        name = f"{type(self).__name__} {(config.network, config.side, config.precision)}"
        self.step = jit(function, backend="graph", saved_as=name, tf32=policy.tf32)

    def function(self, net: Layer, prepare: Prepare) -> Callable[..., Any]:
        """What is done with the parameters, the statistics and a batch."""
        return train.make_eval_step(net, prepare=prepare)

    def __call__(self, train_state: TrainState) -> Any:
        """The averages over all test images."""
        params, state = train_state.params, train_state.state
        return train.evaluate(self.step, params, state, self.batch, batch_size=self.size)
