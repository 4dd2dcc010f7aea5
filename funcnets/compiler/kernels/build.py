"""Compile small C++ libraries at run time, for the instructions that this processor has."""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler import disk_cache
from funcnets.compiler.errors import CompileError

# Needs the C++ library, which a C compiler does not link, and takes almost no time to compile.
_PROBE = "int* memory() { return new int; }"
MAX_SECONDS = 300  # that a compiler may take
MAX_COMPILERS = 3  # processes at a time: a network's long kernels don't wait for each other
FLOAT_TYPES = {torch.float32: "float", torch.float64: "double"}
MEMORY_TYPES = FLOAT_TYPES | {torch.bfloat16: "bfloat16"}  # C++ type of numbers in memory
REGISTER_TYPES = FLOAT_TYPES | {torch.bfloat16: "float"}  # C++ type of numbers in registers
NUMBERS = Path(__file__).with_name("numbers.hpp").read_text(encoding="utf-8")
VECTORS = Path(__file__).with_name("vectors.hpp").read_text(encoding="utf-8")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math"),  # both would prevent vectorization
)
# Each operation rounds its result, as PyTorch's do, so that equal products have the difference 0,
# and not a negative one whose square root is NaN.
ROUND_EACH = ("-ffp-contract=off",)


def load(source: str, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """Return the library compiled from C++ `source` by $CXX or g++, or None if that fails.

    The library is kept in the user's cache directory, under a name that changes with the source,
    the compiler, the `flags` that it gets beside FLAGS, and the processor. The code must not call
    Python: other threads run meanwhile.
    """
    found = try_load(source, *flags)
    return None if isinstance(found, str) else found


@functools.cache
def try_load(source: str, *flags: str) -> ctypes.CDLL | str:
    """Return the library compiled from C++ `source`, or the reason why there is none, one line."""
    try:
        identity = target()
        if identity is None:
            return f"there is no C++ compiler {_command()[0]}"
        key = disk_cache.key_of(source, identity, *flags)
        kept = disk_cache.read(key, ".so")
        path = kept[0] if kept else disk_cache.write(key, ".so", _compile(source, flags))
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines()
        return next((line for line in lines if "error" in line), f"{error.cmd[0]} failed")
    except subprocess.TimeoutExpired as error:
        return f"{error.cmd[0]} took longer than {MAX_SECONDS} s"
    except OSError as error:
        return str(error)


def _compile(source: str, flags: Sequence[str] = ()) -> bytes:
    """Return the library that `source` compiles to, as the content of a file."""
    with tempfile.TemporaryDirectory(dir=disk_cache.directory(), prefix=".new-") as scratch:
        built = Path(scratch) / "library.so"
        _output([*_command(), *flags, "-", "-o", str(built)], source)
        return built.read_bytes()


def register_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of numbers in registers: float32 for bfloat16, else `dtype` itself."""
    return dtype if dtype in FLOAT_TYPES else torch.float32


def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_COMPILERS, thread_name_prefix="funcnets-compiler")


_pool = _new_pool()


def _replace_pool() -> None:
    """Replace the pool in a forked process, which has none of the pool's threads."""
    global _pool
    _pool = _new_pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_pool)


class Library:
    """C++ library that compiles in the background; its functions wait until it is there."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._pool = _pool
        self._compiled = _pool.submit(try_load, source)

    def wait(self) -> ctypes.CDLL | str:
        """Return the library once it is compiled, or the reason why there is none."""
        # In a forked process a future of the parent may never be done, and its lock stay taken.
        is_forked = self._pool is not _pool
        return try_load(self._source) if is_forked else self._compiled.result()

    def __getitem__(self, name: str) -> Callable[..., None]:
        """Return the C function `name`; raise CompileError if the source does not compile."""
        library = self.wait()
        if isinstance(library, str):
            raise CompileError(
                f"jit: {_command()[0]} can't compile a kernel of funcnets ({library}): with "
                "CXX=none the graph does without"
            )
        function: Callable[..., None] = getattr(library, name)  # is kept, unlike library[name]
        return function


@dataclass(frozen=True, eq=False)  # by identity, which is fast to hash
class Kernel:
    """C++ file whose functions are compiled for one dtype and one tuple of settings at a time.

    Before the file's text stand numbers.hpp, the types Stored (of numbers in memory) and Real (in
    registers), and the declarations.

    Attributes:
        path: the file.
        declarations: C++ for a dtype and settings, such as constants, or VECTORS.
    """

    path: Path
    declarations: Callable[..., str]

    def source(self, dtype: torch.dtype, *settings: Hashable) -> str:
        """Return the whole C++ source for a dtype and settings."""
        lines = [
            NUMBERS,
            f"#define STORED_{MEMORY_TYPES[dtype]}",
            f"using Stored = {MEMORY_TYPES[dtype]}; using Real = {REGISTER_TYPES[dtype]};",
            self.declarations(dtype, *settings),
            self.path.read_text(encoding="utf-8"),
        ]
        return "\n".join(lines)

    def begin(self, dtype: torch.dtype, *settings: Hashable) -> Library:
        """Begin to compile in the background, once for each dtype and settings."""
        library = _library(self, dtype, settings)
        if (begun := _begun.get()) is not None:
            begun[self.path.stem, dtype, settings] = library
        return library

    def call(
        self,
        function: str,
        settings: tuple[Hashable, ...],
        x: Tensor,
        *tensors: Tensor | None,
        sizes: Sequence[int],
    ) -> None:
        """Call a C function with the addresses of tensors (null for None) and an array of sizes.

        The function is compiled for the dtype of `x`; if nobody began to, this call does, and
        waits. Raises CompileError if that fails.
        """
        called: Any = self.begin(x.dtype, *settings)[function]
        pointers = [None if each is None else each.data_ptr() for each in (x, *tensors)]
        if called.argtypes is None:
            called.argtypes = (ctypes.c_void_p,) * (len(pointers) + 1)
        called(*pointers, longs(*sizes))


Begun = dict[tuple[str, torch.dtype, tuple[Hashable, ...]], Library]
"""Libraries that a graph needs, by the kernel's name, dtype and settings."""
_begun: ContextVar[Begun | None] = ContextVar("_begun", default=None)
_is_off: ContextVar[bool] = ContextVar("_is_off", default=False)


@contextlib.contextmanager
def collect_begun() -> Iterator[Begun]:
    """Context that collects the libraries that are begun in it."""
    begun: Begun = {}
    token = _begun.set(begun)
    try:
        yield begun
    finally:
        _begun.reset(token)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Context in which no compiler is available, so that no rule takes a kernel."""
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


@functools.cache
def _library(kernel: Kernel, dtype: torch.dtype, settings: tuple[Hashable, ...]) -> Library:
    return Library(kernel.source(dtype, *settings))


def constants(**values: int) -> str:
    """Return C++ that declares integer constants."""
    return "\n".join(f"constexpr int {name} = {value};" for name, value in values.items())


@functools.lru_cache(maxsize=1 << 12)
def longs(*numbers: int) -> ctypes.Array[ctypes.c_long]:
    """Return numbers as a C array, which must not be written to as it is shared."""
    return (ctypes.c_long * len(numbers))(*numbers)


def is_available() -> bool:
    """True if there is a C++ compiler that works, and a directory for what it builds.

    The first call compiles a line of C++, unless the user's cache has it.
    """
    return not _is_off.get() and load(_PROBE) is not None


def reason_unavailable() -> str | None:
    """Return why C++ can't be compiled here, one line; None if it can be."""
    found = try_load(_PROBE)
    return found if isinstance(found, str) else None


def describe() -> str:
    """Return which compiler makes the kernels here, and a digest of all that they depend on.

    It is `none` where there are no kernels, as without a compiler.
    """
    if not is_available():
        return "none"
    digest = hashlib.sha256((target() or "").encode()).hexdigest()
    return f"{Path(_command()[0]).name} {digest[:8]}"


@functools.cache
def target() -> str | None:
    """Return what compiled code depends on beside its source; None if there is no compiler.

    That is the compiler's version, its options, and the processor's instructions.
    """
    command = _command()
    if shutil.which(command[0]) is None:
        return None
    try:
        # The predefined macros have the version and the instructions.
        return "\0".join([_output([*command, "-dM", "-E", os.devnull]), *command])
    except (OSError, subprocess.SubprocessError):
        return None


def _command() -> list[str]:
    return [*(shlex.split(os.environ.get("CXX", "")) or ["g++"]), *FLAGS, "-x", "c++"]


def _output(command: list[str], given: str = "") -> str:
    """Return what a command prints; raise CalledProcessError, TimeoutExpired or OSError.

    It runs in a session of its own, so that Ctrl-C in a terminal stops the training alone.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(given, timeout=MAX_SECONDS)
        except BaseException:
            _kill_session(process)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed, errors)
    return printed


def _kill_session(process: subprocess.Popen[str]) -> None:
    """Kill a compiler with the processes that it has started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
