"""`jit`, the function, and what it gives: which graph runs for which arguments."""

from __future__ import annotations  # so that help(jit) shows a signature of one line

import functools
import warnings
from collections.abc import Callable, Sequence
from itertools import count
from types import MethodType
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    cast,
    overload,
)

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakIdKeyDictionary

from funcnets._debug import is_debugged
from funcnets._torch import functorch, get_proxy_mode
from funcnets.compiler import pipeline
from funcnets.compiler.arguments import (
    Call,
    Selection,
    check_donated,
    check_leaves,
    prints_as_itself,
    select,
    take_call_apart,
)
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
from funcnets.compiler.donated import retire
from funcnets.compiler.errors import is_left_of_trace
from funcnets.compiler.executables import Executables
from funcnets.compiler.explain import Explanation, explain
from funcnets.compiler.failures import raise_explained
from funcnets.compiler.fast_call import FastCall, filler
from funcnets.compiler.fingerprint import fingerprint
from funcnets.compiler.graph.compilation import Aliases, Compilation
from funcnets.compiler.graph.structure import Structure
from funcnets.compiler.kernels import build
from funcnets.compiler.lowerings import DEFAULT, DETERMINISTIC, Lowering
from funcnets.compiler.recorder import is_recording
from funcnets.compiler.trace import Trace

P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self")
Q = ParamSpec("Q")
Argnums = int | Sequence[int]
Argnames = str | Sequence[str]
Lowerings = Sequence[Lowering] | Literal["default"] | None

MOST_RECENT = 4  # kinds of call that are known at sight, such as a full and a short batch


class _Executable:
    """A compiled graph: it takes the tensors of the arguments, and gives the tree of results."""

    def __init__(
        self,
        run: Executable,
        structure: Structure,
        aliases: Aliases,
        donated: tuple[int, ...],
        captured: Captured,
        can_replay: bool,  # as a CUDA graph
        trace: Trace | None = None,
    ) -> None:
        self.run, self.donated, self.captured, self.trace = run, donated, captured, trace
        self.can_replay = can_replay
        self._fill, self._retires = filler(structure), is_debugged("donation")
        # Each result, as a position among the arguments and then what the graph gives.
        given = count()
        self._sources = [
            ~aliases[i] if i in aliases else next(given) for i in range(len(structure.places))
        ]

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Return the results; the donated tensors hold new values then."""
        donated = [tensors[position] for position in self.donated]
        self.captured.check(donated)
        try:
            with heap.kept(), without_autocast():
                given = self.run(*tensors)
        except BaseException as error:
            raise_explained(error, is_donated=bool(donated))
        # Loops write by themselves, and a write is what PyTorch and `Captured` go by.
        increment_version([tensor for tensor in donated if not tensor.is_inference()])
        if self._retires:
            tensors = retire(tensors, self.donated)
        return self._fill([tensors[~i] if i < 0 else given[i] for i in self._sources])


class Options(NamedTuple):
    """Options of a compilation; see `jit`."""

    donated: Selection
    static: Selection
    backend: Backend | None
    lowerings: tuple[Lowering, ...]
    saved_as: str | None
    tf32: bool
    deterministic: bool


class Jitted(Generic[P, R]):
    """A function under `jit`; see there.  Each kind of call is traced and compiled once.

    As an attribute of a class it is a method, and is compiled for each instance.
    """

    def __init__(
        self,
        function: Callable[P, R],
        options: Options,
        executables: Executables[_Executable] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.options = function, options
        if executables is None:
            executables = Executables(_name(function))
        self._executables = executables
        self._recent: list[tuple[FastCall, _Executable]] = []
        self._of_instances: Any = WeakIdKeyDictionary()  # executables of methods

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function gives for these arguments, by the compiled graph.

        Inside a `torch.func` transform or another `jit` the function is called as it is, so that
        the outer transform sees through it.
        """
        if functorch.maybe_current_level() is not None or _is_traced():
            return self.function(*args, **kwargs)
        for fast, executable in () if kwargs else self._recent:
            if (tensors := fast.take(args)) is not None:
                return cast(R, executable(tensors))
        call = self._take_apart(args, kwargs, have_numbers=True)
        executable = self._executables.get(call.key, lambda: self._build(call))
        check_donated(call.tensors, executable.donated)
        if not (kwargs or self.options.static.positions or self.options.static.names):
            self._remember(call, executable)
        return cast(R, executable(call.tensors))

    def _remember(self, call: Call, executable: _Executable) -> None:
        if len(set(map(id, call.tensors))) == len(call.tensors):
            fast = FastCall(call.structure, call.tensors, executable.donated)
            self._recent = [(fast, executable), *self._recent[: MOST_RECENT - 1]]

    def trace(self, *args: P.args, **kwargs: P.kwargs) -> Trace:
        """Return the graph for arguments like these, lowered but not compiled.

        Nothing is computed: tensors of PyTorch's FakeTensorMode will do.
        """
        return _as_trace(self._trace(self._take_apart(args, kwargs)))

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Return what tracing and each pass did for arguments like these; `print` shows a table.

        >>> import torch
        >>> explanation = jit(lambda x: (x + 1).t().t(), backend="graph").explain(torch.ones(2, 2))
        >>> [(each.name, each.after) for each in explanation.passes[:2]]
        [('record', 3), ('check_purity', 3)]
        """
        call = self._take_apart(args, kwargs)
        backend = self.options.backend or _usual_backend(call.tensors)
        function, donated = call.bind(self.function), call.positions(self.options.donated)
        return explain(function, call.tensors, self.options.lowerings, backend, donated)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Jitted[P, R]: ...
    @overload
    def __get__(
        self: Jitted[Concatenate[Self, Q], R], instance: Self, owner: type | None = None
    ) -> Jitted[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Return the method of an instance, whose graphs live as long as the instance."""
        if instance is None:
            return self
        if 0 in self.options.donated.positions:
            raise ValueError("jit: argument 0 of a method is its instance, which can't be donated")
        try:
            executables = self._of_instances.get(instance)
            if executables is None:
                executables = self._of_instances[instance] = Executables(_name(self.function))
        except TypeError:
            raise TypeError(
                f"jit: a {type(instance).__name__} can't be referenced weakly, so its methods "
                "can't be compiled: jit a function that takes it apart, or add '__weakref__' to "
                "its __slots__"
            ) from None
        options = self.options._replace(
            donated=self.options.donated.without_first(),
            static=self.options.static.without_first(),
        )
        return Jitted(MethodType(self.function, instance), options, executables)

    def _take_apart(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, have_numbers: bool = False
    ) -> Call:
        static = self.options.static
        call = take_call_apart(args, kwargs, static)
        is_fake = have_numbers and any(map(is_left_of_trace, call.tensors))
        if is_fake or len(call.tensors) < call.structure.spec.num_leaves:
            check_leaves(self.function, args, kwargs, static, have_numbers=have_numbers)
        return call

    def _build(self, call: Call) -> _Executable:
        donated = call.positions(self.options.donated)
        check_donated(call.tensors, donated)
        backend = self.options.backend or _usual_backend(call.tensors)
        key = self._program_key(call, backend, donated)
        executable = (key and _read(key, donated)) or self._compile(call, backend, donated, key)
        executable.run = cuda.prepared(
            executable.run,
            call.tensors,
            donated,
            tf32=self.options.tf32,
            deterministic=self.options.deterministic,
            can_replay=executable.can_replay,
        )
        return executable

    def _compile(
        self, call: Call, backend: Backend, donated: tuple[int, ...], key: str | None
    ) -> _Executable:
        """Trace and compile a call, and keep the program under `key` if that can be."""
        with build.collect_begun() as kernels:
            compilation = self._finish(call, backend, donated)
        if reason := _first_failure(kernels):
            warnings.warn(
                f"jit: a kernel can't be compiled ({reason}): the graph runs without kernels in "
                "C++, more slowly",
                stacklevel=4,
            )
            with build.without_kernels(), build.collect_begun() as kernels:
                compilation = self._finish(call, backend, donated)
        if key is not None:
            program_cache.keep(compilation, kernels, key)
        return _Executable(
            compile_graph(compilation.module, backend, deterministic=self.options.deterministic),
            compilation.structure,
            compilation.aliases,
            donated,
            Captured(compilation.constants()),
            cuda.can_replay(compilation.module.code),
            _as_trace(compilation),
        )

    def _finish(self, call: Call, backend: Backend, donated: tuple[int, ...]) -> Compilation:
        compilation = self._trace(call)
        pipeline.finish(compilation, backend, donated)
        return compilation

    def _program_key(self, call: Call, backend: Backend, donated: tuple[int, ...]) -> str | None:
        """Return the key of the program of a call between processes; None if it isn't kept."""
        name, is_plain = self.options.saved_as, all(map(prints_as_itself, call.constants.values()))
        if name is None or backend == "inductor" or not is_plain:
            return None
        code = fingerprint(self.function)
        if code is None:
            return None
        lowerings = tuple(lowering.name for lowering in self.options.lowerings)
        how = (build.is_available(), backend, lowerings, donated)
        return program_cache.key_of(name, code, *how, call.key)

    def _trace(self, call: Call) -> Compilation:
        return pipeline.trace(call.bind(self.function), call.tensors, self.options.lowerings)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _as_trace(compilation: Compilation) -> Trace:
    return Trace(compilation.module, compilation.structure, dict(compilation.fired))


def _first_failure(kernels: build.Begun) -> str | None:
    """Wait for all kernels, and return why one of them can't be compiled, if there is one.

    A kernel that fails at its first call would leave a state half written.
    """
    found = (library.wait() for library in kernels.values())
    return next((reason for reason in found if isinstance(reason, str)), None)


def _read(key: str, donated: tuple[int, ...]) -> _Executable | None:
    """Return the program that is kept under a key, if it is one that can be run here."""
    program = program_cache.read(key)
    run = program and program_cache.load(program)
    if not program or not run:
        return None
    can_replay = cuda.can_replay(program.code)
    return _Executable(run, program.structure, program.aliases, donated, Captured(()), can_replay)


def _usual_backend(tensors: Sequence[Tensor]) -> Backend:
    return usual_backend(next((tensor.device for tensor in tensors), "cpu"))


def _is_traced() -> bool:
    return is_recording() or get_proxy_mode() is not None or torch.compiler.is_compiling()


@overload
def jit(
    function: Callable[P, R],
    *,
    donate_argnums: Argnums = (),
    static_argnums: Argnums = (),
    static_argnames: Argnames = (),
    backend: Backend | None = None,
    lowerings: Lowerings = "default",
    saved_as: str | None = None,
    tf32: bool = False,
    deterministic: bool = False,
) -> Jitted[P, R]: ...
@overload
def jit(
    function: None = None,
    *,
    donate_argnums: Argnums = (),
    static_argnums: Argnums = (),
    static_argnames: Argnames = (),
    backend: Backend | None = None,
    lowerings: Lowerings = "default",
    saved_as: str | None = None,
    tf32: bool = False,
    deterministic: bool = False,
) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...
def jit(
    function: Callable[..., Any] | None = None,
    *,
    donate_argnums: Argnums = (),
    static_argnums: Argnums = (),
    static_argnames: Argnames = (),
    backend: Backend | None = None,
    lowerings: Lowerings = "default",
    saved_as: str | None = None,
    tf32: bool = False,
    deterministic: bool = False,
) -> Any:
    """Compile a pure function of trees of tensors to one graph.

    The function is traced (and compiled) once for each structure, shape, dtype, device and memory
    format of its arguments (and which of them are one tensor), each value of the static ones, and
    each setting of autocast and of PyTorch's default dtype.  The graphs of the last 128 kinds of
    call are kept, and after 32 kinds a warning says that the function is traced again and again.

    The function is then not run again: what it prints, it prints while it is traced, and a tensor
    that it captures is a constant of the graph (changing one raises TraceError at the next call).
    A number that it reads out of a captured tensor, as with `.item()`, stays what it was.  Results
    carry no autograd history.

    Without a function it is a decorator with these options.  A method is compiled for each
    instance, whose attributes are captured: what they are when the method is traced, they stay.

    Args:
        function: takes and gives trees of tensors (None is allowed, as structure).
        donate_argnums: arguments whose memory the results may take.  After the call they hold
            new values, and returned tensors are the donated objects themselves: use what was
            returned.  With FUNCNETS_DEBUG=donation results are new objects, and each use of a
            donated one raises DonatedError (`torch.func.grad`, `vjp`: a RuntimeError).  Results
            share no memory with other arguments or captured tensors: what is passed on is copied.
        static_argnums: arguments that are no tensors; hashable, and baked into the graph.  An
            argument that has a name too is the same whether it is given by position or by name.
        static_argnames: the same, by name.
        backend: `graph` runs the traced and lowered graph as it is; `native` makes loops in C++ of
            what lies between its large operations, if there is a compiler ($CXX, g++), in a second
            or two; `inductor` is PyTorch's compiler.  None: native on a CPU, elsewhere inductor.
        lowerings: rewrites of operations that the target runs badly; None for none.
        saved_as: a name for the function, under which `graph` and `native` keep what they made of
            it in the user's cache directory, so that no other process has to trace it again.  The
            code of the function, what it closes over, the modules that it comes from, versions and
            arguments are all part of the key.  What captures a tensor isn't kept, nor are calls
            with static arguments other than numbers, strings and tuples of them.
        tf32: True if GPUs may round the factors of float32 products to TF32, whatever is set for
            the process; on a CPU it changes nothing.
        deterministic: True for the same bits each time on a GPU, where the fastest gradients of
            convolutions and overlapping max pools add numbers in no fixed order.  On a CPU it
            changes nothing: there the bits are the same for the same number of threads.

    On Linux `funcnets.compiler.keep_memory()`, which the command line calls, lets graphs keep the
    memory that they free, which is faster; without it nothing is changed for the process.

    On a GPU a function that is donated its state is replayed as a CUDA graph, from the second call
    on that finds the state at the same addresses, unless it sums over several processes.

    Raises:
        ValueError: for a back end or an argument that there isn't; from a call, where a donated
            tensor shares its memory with another argument, or with a tensor that is captured, and
            for an index or a label out of range: on a CPU donated arguments are then as they were.
            (A GPU finds one when it is too late: PyTorch's device-side assertion ends the
            process's use of the device.)
        TraceError: from a call, where the function isn't a pure function of tensors.
        CompileError: from a call, where the back end fails.

    >>> import torch
    >>> from funcnets import jit
    >>> @jit(static_argnames="power", backend="graph")
    ... def norm(values, power=2):
    ...     return sum(x.abs().pow(power).sum() for x in values.values()) ** (1 / power)
    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, power=1)
    tensor(7.)
    """
    if function is None:
        return functools.partial(
            jit,
            donate_argnums=donate_argnums,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            backend=backend,
            lowerings=lowerings,
            saved_as=saved_as,
            tf32=tf32,
            deterministic=deterministic,
        )
    if backend not in (None, *BACKENDS):
        raise ValueError(f"jit: no backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    donated = select(function, donate_argnums, option="donate_argnums")
    static = select(function, static_argnums, static_argnames, option="static_argnames")
    if both := set(donated.positions) & set(static.positions):
        raise ValueError(f"jit: arguments {sorted(both)} are both donated and static")
    chosen = DEFAULT if lowerings == "default" else tuple(lowerings or ())
    if deterministic:
        chosen = (*DETERMINISTIC, *chosen)
    how = Options(donated, static, backend, chosen, saved_as, tf32, deterministic)
    return Jitted(function, how)
