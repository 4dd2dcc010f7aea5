"""Saved programs: finished graphs on disk, for other processes, which need not trace them again.

Tracing takes seconds, and importing PyTorch's tracer two more; a saved program is there in a
tenth of one.  They are kept beside the compiled loops, and can be deleted at any time.
"""

import functools
import hashlib
import pickle
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.fx.graph import _custom_builtins

from funcnets.compiler.backends.select import Executable
from funcnets.compiler.graph.compilation import Aliases, Compilation
from funcnets.compiler.graph.structure import Structure
from funcnets.compiler.kernels import build
from funcnets.compiler.loops.call import Loop, Plan

# What the Python of a graph may name, beside its arguments and builtins.
NAMES = {name: builtin.obj for name, builtin in _custom_builtins.items()}


class Program(NamedTuple):
    """A graph that is ready to run, as data.

    Attributes:
        code: Python, the function `forward(self, *tensors)`.
        loops: the loops that it calls, by their names.
        source: C++ of the loops.
        structure: that of the result.
        aliases: which results are in which arguments' memory.
    """

    code: str
    loops: dict[str, Sequence[Plan]]
    source: str
    structure: Structure
    aliases: Aliases


def keep(compilation: Compilation, place: Path) -> Executable | None:
    """Write the program of a finished graph to a file, and return it as a function.

    Returns None where the graph is more than code.
    """
    program = as_program(compilation)
    if program is None:
        return None
    write(program, place)
    return load(program)


def as_program(compilation: Compilation) -> Program | None:
    """Return the program of a finished graph; None where the graph is more than code.

    It is, if the function captured a tensor, or the graph calls what isn't an operation.
    """
    graph, module = compilation.graph, compilation.module
    python = graph.python_code("self")
    if python.globals.keys() - NAMES or graph.find_nodes(op="get_attr"):
        return None
    loops = {name: loop.plans for name, loop in module.named_children() if isinstance(loop, Loop)}
    structure, aliases = compilation.structure, compilation.aliases
    return Program(python.src, loops, compilation.source, structure, aliases)


def load(program: Program) -> Executable | None:
    """The program as a function of its tensors; None where its loops can't be compiled here."""
    loops: dict[str, Loop] = {}
    if program.loops:
        library = build.load(program.source)
        if library is None:
            return None
        loops = {name: Loop(plans, library) for name, plans in program.loops.items()}
    names: dict[str, Any] = dict(NAMES)
    exec(compile(program.code, "<saved program>", "exec"), names)
    forward = functools.partial(names["forward"], SimpleNamespace(**loops))
    return torch.no_grad()(forward)


def place(*key: Hashable) -> Path | None:
    """The file for the program with this key; None where there is no place for it.

    Keys are told apart by how they print, with the version of all that made the program.
    """
    text = "\0".join([versions(), *map(repr, key)])
    try:
        name = hashlib.sha256(text.encode()).hexdigest()
        return build.cache_directory() / f"{name[:32]}.program"
    except OSError:
        return None


def read(path: Path) -> Program | None:
    """The program in a file; None where there is none that is whole."""
    try:
        program = pickle.loads(path.read_bytes())
    except Exception:  # a damaged file can raise anything, and is written anew
        return None
    return program if isinstance(program, Program) else None


def write(program: Program, path: Path) -> None:
    """Keep a program in a file, as a whole or, where it can't be written, not at all."""
    try:
        content = pickle.dumps(program)
        with build.atomic_write(path) as file:
            file.write_bytes(content)
    except Exception:  # a class in the structure that can't be pickled can raise anything
        return


@functools.cache
def versions() -> str:
    """What a program depends on beside its key: this package, PyTorch, Python, the processor."""
    digest = hashlib.sha256((build.target() or "").encode())
    for file in _sources(Path(__file__).parents[1]):
        digest.update(file.read_bytes())
    return "\0".join([digest.hexdigest(), torch.__version__, sys.version])


def _sources(package: Path) -> Sequence[Path]:
    return sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".hpp"))
