"""`jit`, the function: what is called for which arguments, and when it is traced anew."""

import contextlib
import functools
import gc
import math
import reprlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from inspect import Parameter, signature
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd.graph import increment_version
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from funcnets import tree
from funcnets.compiler.backends import cuda, heap, program_cache
from funcnets.compiler.backends.inductor import make_opaque, spell_out_factors
from funcnets.compiler.backends.select import (
    BACKENDS,
    Backend,
    Executable,
    compile_graph,
    usual_backend,
)
from funcnets.compiler.errors import TraceError
from funcnets.compiler.graph.aliasing import allow_copies
from funcnets.compiler.loops.lower import fuse_loops
from funcnets.compiler.lowerings import DEFAULT, Lowering
from funcnets.compiler.passes.donate import Aliases, donate
from funcnets.compiler.passes.fuse import fuse
from funcnets.compiler.passes.reuse_memory import reuse_memory
from funcnets.compiler.recorder import is_recording
from funcnets.compiler.trace import Structure, Trace, take_apart, trace


class _Call(NamedTuple):
    """The arguments of one call, taken apart."""

    tensors: list[Tensor]
    donated: tuple[int, ...]  # positions among `tensors`
    rebuild: Callable[..., Any]  # tensors -> what the function gives for them
    static: tuple[Any, ...]  # the values of the static arguments
    key: Hashable  # calls with the same key run the same graph


class _Executable(NamedTuple):
    run: Executable
    structure: Structure  # of the result
    aliases: Aliases
    trace: Trace | None  # where it was traced by this process


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
        """What the function gives for these arguments, by the compiled graph.

        Inside a `torch.func` transform or another `jit` the function is called as it is, so that
        the outer transform sees through it.
        """
        if _functorch.maybe_current_level() is not None or _is_traced():
            return self.function(*args, **kwargs)
        call = self._take_apart(args, kwargs)
        executable = self._executables.get(call.key)
        if executable is None:
            executable = self._executables[call.key] = self._build(call)
        run, structure, aliases, traced = executable
        donated = [call.tensors[position] for position in call.donated]
        if traced is not None:
            traced.check_constants(donated)
        with heap.kept(), _without_autocast():
            results = iter(run(*call.tensors))
        # Loops write by themselves, and a write is what PyTorch and `check_constants` go by.
        increment_version([tensor for tensor in donated if not tensor.is_inference()])
        return structure.fill(
            call.tensors[aliases[i]] if i in aliases else next(results)
            for i in range(len(structure.places))
        )

    def trace(self, *args: Any, **kwargs: Any) -> Trace:
        """The graph for arguments like these, lowered but not compiled; nothing is computed."""
        return self._trace(self._take_apart(args, kwargs))

    def _build(self, call: _Call) -> _Executable:
        backend = self.backend or _usual_backend(call.tensors)
        place = self._place(call, backend)
        executable = (place and _read(place)) or self._compile(call, backend, place)
        run = cuda.prepared(executable.run, call.tensors, call.donated, tf32=self.tf32)
        return executable._replace(run=run)

    def _compile(self, call: _Call, backend: Backend, place: Path | None) -> _Executable:
        """Trace a call and compile it; what can be kept at `place` is."""
        traced = self._trace(call)
        loops = fuse_loops(traced.graph) if backend == "native" else ""
        if backend == "graph" and self.lowerings:
            traced.fired.update(fuse(traced.graph, are_loops_to_come=False))
        aliases = donate(traced.graph, call.donated)
        if backend != "inductor":
            allow_copies(traced.graph.graph)
            reuse_memory(traced.graph)
        if backend == "inductor":
            spell_out_factors(traced.graph)
            if self.lowerings:
                make_opaque(traced.graph)
        run = None
        if place and (
            program := program_cache.as_program(traced.graph, loops, traced.structure, aliases)
        ):
            program_cache.write(program, place)
            run = program_cache.load(program)
        run = run or compile_graph(traced.graph, backend)
        return _Executable(run, traced.structure, aliases, traced)

    def _place(self, call: _Call, backend: Backend) -> Path | None:
        """Where the program of a call is kept between processes, if it is."""
        if self.saved_as is None or backend == "inductor" or not _is_plain(call.static):
            return None
        lowerings = tuple(lowering.name for lowering in self.lowerings)
        return program_cache.place(self.saved_as, backend, lowerings, call.donated, call.key)

    def _trace(self, call: _Call) -> Trace:
        with _uncollected():
            traced = trace(call.rebuild, call.tensors, self.lowerings)
            if self.lowerings:
                traced.fired.update(fuse(traced.graph))
        return traced

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        static = {i: args[i] for i in self.static_argnums if i < len(args)}
        dynamic = [None if i in self.static_argnums else arg for i, arg in enumerate(args)]
        tensors, structure = take_apart((dynamic, kwargs))
        if any(leaf.is_neg() or leaf.is_conj() for leaf in tensors):
            # Loops read numbers as they are in memory, where bits of the tensor can't be seen.
            tensors = [leaf.resolve_conj().resolve_neg() for leaf in tensors]
        if len(tensors) < structure.spec.num_leaves:
            self._check_leaves(dynamic, kwargs)
        donated = self._donated(structure, tensors) if self.donate_argnums else ()

        def rebuild(*values: Tensor) -> Any:
            positional, named = structure.fill(values)
            for position, value in static.items():
                positional[position] = value
            return self.function(*positional, **named)

        layouts = tuple((leaf.shape, leaf.dtype, leaf.device, leaf.stride()) for leaf in tensors)
        # A tensor that is given twice is traced as one, so the graph serves such calls alone.
        first: dict[int, int] = {}
        sharing = tuple(first.setdefault(id(leaf), i) for i, leaf in enumerate(tensors))
        values = tuple(_static_key(i, value) for i, value in static.items())
        key = (structure, layouts, sharing, values, torch.get_default_dtype(), _autocast())
        return _Call(tensors, donated, rebuild, tuple(static.values()), key)

    def _check_leaves(self, dynamic: list[Any], kwargs: dict[str, Any]) -> None:
        for name, leaf in tree.flatten_named((dynamic, kwargs)).items():
            if leaf is not None and not isinstance(leaf, Tensor):
                _, place = name.split(".", 1)
                raise TraceError(
                    f"jit: argument {place} is {reprlib.repr(leaf)}: pass a tensor, as a number "
                    "would be baked into the graph, or give it by position and name it in "
                    "static_argnums"
                )

    def _donated(self, structure: Structure, tensors: list[Tensor]) -> tuple[int, ...]:
        """Positions of the donated tensors; each must be given once only."""
        ends = list(accumulate(tree.widths(structure.spec.children()[0])))
        argument_of = (bisect_right(ends, place) for place in structure.places)
        donated = [i for i, argument in enumerate(argument_of) if argument in self.donate_argnums]
        owners = [tensor.untyped_storage()._cdata for tensor in tensors]
        times = Counter(owners)
        for position in donated:
            if times[owners[position]] > 1:
                raise ValueError(
                    f"jit: a donated tensor of shape {tuple(tensors[position].shape)} shares its "
                    "memory with another argument: clone one of them, or don't donate"
                )
        return tuple(donated)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """While many objects are made that stay, which Python would search for garbage in between."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(place: Path) -> _Executable | None:
    """The program that is kept there, if it is one that can be run here."""
    program = program_cache.read(place)
    run = program and program_cache.load(program)
    return _Executable(run, program.structure, program.aliases, None) if program and run else None


def _static_key(position: int, value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        raise TraceError(
            f"jit: static argument {position} is {value!r}, which can't be hashed: "
            "pass a number, a string, or a tuple of them"
        ) from None
    return position, _kind(value)


def _kind(value: Any) -> Hashable:
    """What tells a value from all others: 1, 1.0 and True are equal, and so are 0.0 and -0.0."""
    if isinstance(value, tuple):
        return type(value), tuple(map(_kind, value))
    return type(value), repr(value) if isinstance(value, float | complex) else value


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    """The kinds of devices on which operations are cast now, and to which type."""
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    )


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """While a graph runs, which has its casts in it."""
    with contextlib.ExitStack() as stack:
        for device, _ in _autocast():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _is_plain(value: Any) -> bool:
    """Whether two such values are the same if they print the same."""
    if isinstance(value, tuple):
        return type(value) is tuple and all(map(_is_plain, value))
    return value is None or type(value) in (int, float, bool, str, torch.dtype)


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
            name must change with all that the function is made of, numbers that it captures too;
            versions and arguments are seen to.  What captures a tensor isn't kept, nor are calls
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
