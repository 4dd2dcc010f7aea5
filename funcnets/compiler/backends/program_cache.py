"""Saved programs: finished graphs on disk, for other processes, which need not trace them again.

Tracing takes seconds, and the import of PyTorch's tracer two more; a saved program is loaded in a
tenth of a second.  Programs are files of the disk cache, which can be deleted at any time: the
graph as Python code, and everything else as JSON.
"""

import functools
import hashlib
import importlib
import json
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from funcnets import _torch, tree
from funcnets.compiler import disk_cache
from funcnets.compiler.backends.select import Executable
from funcnets.compiler.graph.compilation import Aliases, Compilation
from funcnets.compiler.graph.structure import Structure
from funcnets.compiler.kernels import build
from funcnets.compiler.loops.call import Layout, Loop, Plan

# What the Python of a graph may name, beside its arguments and builtins.
NAMES = _torch.graph_builtins()
SUFFIX = ".program"


class Program(NamedTuple):
    """A graph that is ready to run, as data.

    Attributes:
        code: Python, the function `forward(self, *tensors)`.
        loops: the plans of the loops that it calls, by name.
        source: C++ of the loops.
        structure: that of the result.
        aliases: which results are in which arguments' memory.
        kernels: name, dtype and settings of the kernels that it calls.
    """

    code: str
    loops: dict[str, Sequence[Plan]]
    source: str
    structure: Structure
    aliases: Aliases
    kernels: list[tuple[str, torch.dtype, tuple[Hashable, ...]]]


def keep(compilation: Compilation, kernels: build.Begun, key: str) -> None:
    """Write the program of a finished graph, which calls `kernels`, to the disk cache.

    Nothing is written if the graph is more than code, or the disk is full.
    """
    program = as_program(compilation, kernels)
    try:
        if program is not None:
            disk_cache.write(key, SUFFIX, json.dumps(_to_json(program)).encode())
    except (OSError, ValueError):  # the latter for a structure that JSON can't hold
        return


def as_program(compilation: Compilation, kernels: build.Begun) -> Program | None:
    """Return the program of a finished graph; None if the graph is more than code.

    It is, if the function captured a tensor, or the graph calls what isn't an operation.
    """
    graph, module = compilation.graph, compilation.module
    python = graph.python_code("self")
    if python.globals.keys() - NAMES or graph.find_nodes(op="get_attr"):
        return None
    loops = {name: loop.plans for name, loop in module.named_children() if isinstance(loop, Loop)}
    structure, aliases = compilation.structure, compilation.aliases
    return Program(python.src, loops, compilation.source, structure, aliases, list(kernels))


def load(program: Program) -> Executable | None:
    """Return the program as a function of its tensors; None if its C++ can't be compiled here."""
    libraries = [_kernel(name).begin(dtype, *how) for name, dtype, how in program.kernels]
    loops: dict[str, Loop] = {}
    if program.loops:
        library = build.load(program.source, build.ROUND_EACH)
        if library is None:
            return None
        loops = {name: Loop(plans, library) for name, plans in program.loops.items()}
    if any(isinstance(each.wait(), str) for each in libraries):
        return None
    names: dict[str, Any] = dict(NAMES)
    exec(compile(program.code, "<saved program>", "exec"), names)
    forward = functools.partial(names["forward"], SimpleNamespace(**loops))
    return torch.no_grad()(forward)


def _kernel(name: str) -> build.Kernel:
    kernel: build.Kernel = importlib.import_module(f"funcnets.compiler.kernels.{name}").KERNEL
    return kernel


def key_of(*parts: Hashable) -> str:
    """Return the key of a program: parts are told apart by how they print.

    The versions of everything that made the program are in it too.
    """
    return disk_cache.key_of(versions(), *map(repr, parts))


def read(key: str) -> Program | None:
    """Return the program with this key; None if there is none that is whole."""
    found = disk_cache.read(key, SUFFIX)
    try:
        return found and _from_json(json.loads(found[1]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # written by something else: it is traced, and written anew


def _to_json(program: Program) -> dict[str, Any]:
    return {
        "code": program.code,
        "loops": {
            name: [
                [
                    plan.function,
                    [None if each is None else _layout_to_json(each) for each in plan.operands],
                    [_layout_to_json(each) for each in plan.results],
                    plan.size,
                    plan.strides,
                ]
                for plan in plans
            ]
            for name, plans in program.loops.items()
        },
        "source": program.source,
        "structure": [tree.to_json(program.structure.spec), list(program.structure.places)],
        "aliases": list(program.aliases.items()),
        "kernels": [
            [name, _dtype_name(dtype), [_setting_to_json(each) for each in settings]]
            for name, dtype, settings in program.kernels
        ],
    }


def _from_json(data: dict[str, Any]) -> Program:
    def plan(function: str, operands: Any, results: Any, size: Any, strides: Any) -> Plan:
        given = [None if each is None else _layout(*each) for each in operands]
        return Plan(function, given, [_layout(*each) for each in results], size, strides)

    spec, places = data["structure"]
    return Program(
        data["code"],
        {name: [plan(*each) for each in plans] for name, plans in data["loops"].items()},
        data["source"],
        Structure(tree.from_json(spec), tuple(places)),
        dict(data["aliases"]),
        [
            (name, _dtype(dtype), tuple(_dtype(x) if type(x) is str else x for x in settings))
            for name, dtype, settings in data["kernels"]
        ],
    )


def _layout_to_json(layout: Layout) -> list[Any]:
    dtype, device = _dtype_name(layout.dtype), str(layout.device)
    return [list(layout.shape), list(layout.stride), dtype, device]


def _layout(shape: Any, stride: Any, dtype: str, device: str) -> Layout:
    return Layout(tuple(shape), tuple(stride), _dtype(dtype), torch.device(device))


def _setting_to_json(setting: Hashable) -> int | str:
    """Return a number as it is, and a dtype by its name."""
    if isinstance(setting, torch.dtype):
        return _dtype_name(setting)
    if isinstance(setting, int):
        return setting
    raise ValueError(f"a kernel's setting is {setting!r}; expected a number or a dtype")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


@functools.cache
def versions() -> str:
    """Return what a program depends on beside its key.

    That is this package, PyTorch, Python, the compiler and the processor.
    """
    digest = hashlib.sha256((build.target() or "").encode())
    for file in _sources(Path(__file__).parents[2]):
        digest.update(file.read_bytes())
    return "\0".join([digest.hexdigest(), torch.__version__, sys.version])


def _sources(package: Path) -> Sequence[Path]:
    return sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".hpp"))
