"""Small C++ libraries, compiled where they are used, with all that the processor can do."""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.errors import CompileError

# The least that needs C++'s library, which a compiler of C doesn't link, and takes it no time.
_PROBE = "int* memory() { return new int; }"
SCALARS = {torch.float32: "float", torch.float64: "double"}  # what they are in C++
STORED = SCALARS | {torch.bfloat16: "bfloat16"}  # in memory
COMPUTED = SCALARS | {torch.bfloat16: "float"}  # in registers
NUMBERS = Path(__file__).with_name("numbers.hpp").read_text()
VECTORS = Path(__file__).with_name("vectors.hpp").read_text()
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math"),  # which stand in the way of vectors
)


def load(source: str) -> ctypes.CDLL | None:
    """The library that C++ `source` compiles to, by $CXX or g++; None if there is no compiler.

    The library is kept in the user's cache directory, under a name that changes with the source,
    the compiler and the processor.  It must be plain code: a call lets other threads go on.
    """
    found = attempt(source)
    return None if isinstance(found, str) else found


@functools.cache
def attempt(source: str) -> ctypes.CDLL | str:
    """The library that C++ `source` compiles to, or in a line why there is none."""
    try:
        identity = target()
        if identity is None:
            return f"there is no compiler {_command()[0]}"
        name = hashlib.sha256("\0".join([source, identity]).encode()).hexdigest()
        path = cache_directory() / f"{name[:32]}.so"
        return _kept(path) or _built(source, path)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines()
        return next((line for line in lines if "error" in line), f"{error.cmd[0]} failed")
    except OSError as error:
        return str(error)


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library in a file; None where there is none, or a damaged one, to be built anew."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _built(source: str, path: Path) -> ctypes.CDLL:
    """The library that `source` compiles to, kept at `path` in place of what may be there."""
    with written_whole(path) as built:
        _output([*_command(), "-", "-o", str(built)], source)
    return ctypes.CDLL(str(path))


def computed(dtype: torch.dtype) -> torch.dtype:
    """In which type numbers of a type are in registers: bfloat16 in float32."""
    return dtype if dtype in SCALARS else torch.float32


def _new_compilers() -> ThreadPoolExecutor:
    # As many as a network's kernels need, so that the longest doesn't wait for the others.
    return ThreadPoolExecutor(max_workers=3, thread_name_prefix="funcnets-compiler")


_compilers = _new_compilers()


def _replace_compilers() -> None:
    """In a process that was forked, where the threads aren't that the pool takes for its own."""
    global _compilers
    _compilers = _new_compilers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_compilers)


class Library:
    """C++ that is being compiled, while other work goes on; its functions are there after that."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._compilers = _compilers
        self._compiled = _compilers.submit(attempt, source)

    def __getitem__(self, name: str) -> Callable[..., None]:
        """The function of this name; CompileError where the compiler has failed."""
        # What was begun before a fork may never end in the child, nor its lock be released.
        is_forked = self._compilers is not _compilers
        library = attempt(self._source) if is_forked else self._compiled.result()
        if isinstance(library, str):
            raise CompileError(
                f"jit: {_command()[0]} can't compile a kernel of funcnets ({library}): with "
                "CXX=none the graph does without"
            )
        function: Callable[..., None] = getattr(library, name)  # which keeps it, as [] doesn't
        return function


def call(library: Library | None, name: str, *tensors: Tensor | None, sizes: Sequence[int]) -> None:
    """Call a function of `library` with where each tensor begins in memory, and with its sizes."""
    assert library is not None, "the rule asks for a compiler"
    function: Any = library[name]
    if function.argtypes is None:
        function.argtypes = (ctypes.c_void_p,) * (len(tensors) + 1)
    function(*[None if x is None else x.data_ptr() for x in tensors], longs(*sizes))


@functools.lru_cache(maxsize=1 << 12)
def longs(*numbers: int) -> ctypes.Array[ctypes.c_long]:
    """Numbers as C has them; not to be written to."""
    return (ctypes.c_long * len(numbers))(*numbers)


def begin(source: str) -> Library | None:
    """Begin to compile C++ `source`, as `load` does it; None if there is no compiler."""
    return Library(source) if is_available() else None


def begin_for(
    path: Path, dtype: torch.dtype, *declarations: str, **constants: int
) -> Library | None:
    """Begin to compile a file's C++ for one type, `Stored` in memory and `Real` in registers.

    numbers.hpp, `constants` and `declarations` stand before it.
    """
    lines = [
        NUMBERS,
        f"#define STORED_{STORED[dtype]}",
        f"using Stored = {STORED[dtype]}; using Real = {COMPUTED[dtype]};",
        *(f"constexpr int {name} = {value};" for name, value in constants.items()),
        *declarations,
        path.read_text(),
    ]
    return begin("\n".join(lines))


def is_available() -> bool:
    """Whether there is a compiler, and a place for what it builds."""
    return load(_PROBE) is not None


@functools.cache
def target() -> str | None:
    """What compiled code depends on beside its source: the compiler, its options, the processor.

    None where there is no compiler.
    """
    command = _command()
    if shutil.which(command[0]) is None:
        return None
    try:
        # The macros tell the compiler's version and the processor's instructions.
        return "\0".join([_output([*command, "-dM", "-E", os.devnull]), *command])
    except (OSError, subprocess.CalledProcessError):
        return None


def cache_directory() -> Path:
    """Where compiled code is kept; raises OSError where there is no such place."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError("there is no home directory") from error
    directory = Path(caches) / "funcnets"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _command() -> list[str]:
    return [*(shlex.split(os.environ.get("CXX", "")) or ["g++"]), *FLAGS, "-x", "c++"]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`.

    Other processes see all of it or nothing, even after the machine has stopped; where several
    write, the last one stays.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        file = Path(scratch) / path.name
        yield file
        with file.open("rb+") as written:
            os.fsync(written.fileno())
        file.replace(path)


def _output(command: list[str], given: str = "") -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout
