"""`jit`, the function, and what it gives: which graph runs for which arguments."""

import contextlib
import functools
import gc
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from funcnets._torch import functorch
from funcnets.compiler import pipeline
from funcnets.compiler.arguments import Call, prints_as_itself, take_call_apart
from funcnets.compiler.autocast import without_autocast
from funcnets.compiler.backends import cuda, heap, program_cache
from funcnets.compiler.backends.select import (
    BACKENDS,
    Backend,
    Executable,
    compile_graph,
    usual_backend,
)
from funcnets.compiler.captured import Captured
from funcnets.compiler.fingerprint import fingerprint
from funcnets.compiler.graph.compilation import Aliases, Compilation
from funcnets.compiler.graph.structure import Structure
from funcnets.compiler.kernels import build
from funcnets.compiler.lowerings import DEFAULT, Lowering
from funcnets.compiler.recorder import is_recording
from funcnets.compiler.trace import Trace


class _Executable(NamedTuple):
    run: Executable
    structure: Structure  # of the result
    aliases: Aliases
    trace: Trace | None  # None if another process traced it
    captured: Captured


class Jitted:
    """A function under `jit`; see there.  Each kind of call is traced and compiled once."""

    def __init__(
        self,
        function: Callable[..., Any],
        donate_argnums: tuple[int, ...],
        static_argnums: tuple[int, ...],
        backend: Backend | None,
        lowerings: Sequence[Lowering],
        saved_as: str | None,
        tf32: bool,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.backend, self.lowerings = function, backend, tuple(lowerings)
        self.saved_as, self.tf32 = saved_as, tf32
        self.donate_argnums, self.static_argnums = donate_argnums, static_argnums
        self._executables: dict[Hashable, _Executable] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function gives for these arguments, by the compiled graph.

        Inside a `torch.func` transform or another `jit` the function is called as it is, so that
        the outer transform sees through it.
        """
        if functorch.maybe_current_level() is not None or _is_traced():
            return self.function(*args, **kwargs)
        call = self._take_apart(args, kwargs)
        executable = self._executables.get(call.key)
        if executable is None:
            executable = self._executables[call.key] = self._build(call)
        run, structure, aliases, _, captured = executable
        donated = [call.tensors[position] for position in call.donated]
        captured.check(donated)
        with heap.kept(), without_autocast():
            results = iter(run(*call.tensors))
        # Loops write by themselves, and a write is what PyTorch and `Captured` go by.
        increment_version([tensor for tensor in donated if not tensor.is_inference()])
        return structure.fill(
            call.tensors[aliases[i]] if i in aliases else next(results)
            for i in range(len(structure.places))
        )

    def trace(self, *args: Any, **kwargs: Any) -> Trace:
        """Return the graph for arguments like these, lowered but not compiled.

        Nothing is computed.
        """
        return _as_trace(self._trace(self._take_apart(args, kwargs)))

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return take_call_apart(
            self.function, args, kwargs, self.donate_argnums, self.static_argnums
        )

    def _build(self, call: Call) -> _Executable:
        backend = self.backend or _usual_backend(call.tensors)
        key = self._program_key(call, backend)
        executable = (key and _read(key)) or self._compile(call, backend, key)
        run = cuda.prepared(executable.run, call.tensors, call.donated, tf32=self.tf32)
        return executable._replace(run=run)

    def _compile(self, call: Call, backend: Backend, key: str | None) -> _Executable:
        """Trace and compile a call, and keep the program under `key` if that can be."""
        with build.collect_begun() as kernels:
            compilation = self._finish(call, backend)
        if reason := _first_failure(kernels):
            warnings.warn(
                f"jit: a kernel can't be compiled ({reason}): the graph runs without kernels in "
                "C++, more slowly",
                stacklevel=4,
            )
            with build.without_kernels(), build.collect_begun() as kernels:
                compilation = self._finish(call, backend)
        if key is not None:
            program_cache.keep(compilation, kernels, key)
        return _Executable(
            compile_graph(compilation.module, backend),
            compilation.structure,
            compilation.aliases,
            _as_trace(compilation),
            Captured(compilation.constants()),
        )

    def _finish(self, call: Call, backend: Backend) -> Compilation:
        compilation = self._trace(call)
        pipeline.finish(compilation, backend, call.donated)
        return compilation

    def _program_key(self, call: Call, backend: Backend) -> str | None:
        """Return the key of the program of a call between processes; None if it isn't kept."""
        if self.saved_as is None or backend == "inductor" or not prints_as_itself(call.static):
            return None
        code = fingerprint(self.function)
        if code is None:
            return None
        lowerings = tuple(lowering.name for lowering in self.lowerings)
        how = (build.is_available(), backend, lowerings, call.donated)
        return program_cache.key_of(self.saved_as, code, *how, call.key)

    def _trace(self, call: Call) -> Compilation:
        with _uncollected():
            return pipeline.trace(call.rebuild, call.tensors, self.lowerings)


def _as_trace(compilation: Compilation) -> Trace:
    return Trace(compilation.module, compilation.structure, dict(compilation.fired))


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


def _first_failure(kernels: build.Begun) -> str | None:
    """Wait for all kernels, and return why one of them can't be compiled, if there is one.

    A kernel that fails at its first call would leave a state half written.
    """
    found = (library.wait() for library in kernels.values())
    return next((reason for reason in found if isinstance(reason, str)), None)


def _read(key: str) -> _Executable | None:
    """Return the program that is kept under a key, if it is one that can be run here."""
    program = program_cache.read(key)
    run = program and program_cache.load(program)
    if not program or not run:
        return None
    return _Executable(run, program.structure, program.aliases, None, Captured(()))


def _usual_backend(tensors: Sequence[Tensor]) -> Backend:
    return usual_backend(next((tensor.device for tensor in tensors), "cpu"))


def _is_traced() -> bool:
    return is_recording() or get_proxy_mode() is not None or torch.compiler.is_compiling()


def _argnums(function: Callable[..., Any], argnums: int | Sequence[int]) -> tuple[int, ...]:
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if any(number < 0 for number in numbers):
        raise ValueError(f"jit: got argument numbers {numbers}, expected 0 or more")
    if numbers and max(numbers) >= (count := _positional(function)):
        raise ValueError(
            f"jit: there is no argument {max(numbers)}, as the function takes {count} by position, "
            "counted from 0"
        )
    return numbers


def _positional(function: Callable[..., Any]) -> float:
    """How many arguments a function takes by position, as far as it tells."""
    try:
        kinds = [parameter.kind for parameter in signature(function).parameters.values()]
    except (TypeError, ValueError):  # not every function of C has a signature
        return math.inf
    if Parameter.VAR_POSITIONAL in kinds:
        return math.inf
    return sum(
        kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )


def jit(
    function: Callable[..., Any],
    *,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    backend: Backend | None = None,
    lowerings: Sequence[Lowering] | None = DEFAULT,
    saved_as: str | None = None,
    tf32: bool = False,
) -> Jitted:
    """`function`, a pure function of trees of tensors, as one compiled graph.

    It is traced (and compiled) once for each structure, shape, dtype, device and memory format of
    its arguments (and which of them are one tensor), each value of the static ones, and each
    setting of autocast and of PyTorch's default type.  The function is then not run again: what it
    prints, it prints while it is traced, and a tensor that it captures is a constant of the graph
    (changing one raises TraceError at the next call).  A number that it reads out of a captured
    tensor, as with `.item()`, stays what it was.  Results carry no autograd history.

    Args:
        function: takes and gives trees of tensors (None is allowed, as structure).
        donate_argnums: arguments whose memory the results may take.  After the call they hold
            new values: use what was returned.
        static_argnums: arguments that are no tensors; hashable, given by position, and baked into
            the graph.
        backend: `graph` runs the traced and lowered graph as it is; `native` makes loops in C++ of
            what lies between its large operations, if there is a compiler ($CXX, g++), in a second
            or two; `inductor` is PyTorch's compiler.  None: native on a CPU, elsewhere inductor.
        lowerings: rewrites of operations that the target runs badly; None for none.
        saved_as: a name for the function, under which `graph` and `native` keep what they made of
            it in the user's cache directory, so that no other process has to trace it again.  The
            code of the function, what it closes over, the modules that it comes from, versions and
            arguments are all part of the key.  What captures a tensor isn't kept, nor are calls
            with static arguments other than numbers, strings and tuples of them.
        tf32: whether GPUs may round the factors of float32 products to TF32, whatever is set for
            the process; on a CPU it changes nothing.

    On a GPU a function that is donated its state is replayed as a CUDA graph, from the second call
    on that finds the state at the same addresses.

    Raises:
        ValueError: for a back end or an argument that there isn't; from a call, where a donated
            tensor shares its memory with another argument, or with a tensor that is captured.
        TraceError: from a call, where the function isn't a pure function of tensors.
        CompileError: from a call, where the back end fails.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"jit: no backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    donated, static = _argnums(function, donate_argnums), _argnums(function, static_argnums)
    if both := set(donated) & set(static):
        raise ValueError(f"jit: arguments {sorted(both)} are both donated and static")
    return Jitted(function, donated, static, backend, lowerings or (), saved_as, tf32)
