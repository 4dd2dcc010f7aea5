"""Fingerprint of a function: a text that changes when its code or what it closes over changes.

It covers bytecode, constants, defaults, closures, and the functions, classes and modules that the
code names, with the source of modules that belong neither to Python, PyTorch nor funcnets (whose
versions are part of a saved program's key).  A function with anything else in it, such as a tensor,
has no fingerprint.
"""

import dataclasses
import enum
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import torch

from funcnets._torch import OpOverload

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis), slice, range, enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)
_NAMED = (BuiltinFunctionType, MethodWrapperType, WrapperDescriptorType)
_CODE_FIELDS = (
    *("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags"),
)


class _NoFingerprint(Exception):
    """A value that can't be told apart from others by text."""


def fingerprint(function: Callable[..., Any]) -> str | None:
    """Return the fingerprint of a function, or None if it has something in it that has none."""
    walk = _Walk()
    try:
        walk.value(function)
    except (_NoFingerprint, RecursionError):
        return None
    return walk.digest.hexdigest()


class _Walk:
    """Walk over values, with a digest of a text for each; values seen before go by number."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # the values too, so that no id is used twice

    def _add(self, text: str) -> None:
        self.digest.update(f"{text}\0".encode(errors="surrogatepass"))

    def value(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._add(f"{type(value).__qualname__} {value!r}")
            return
        if id(value) in self._seen:
            self._add(f"seen {self._seen[id(value)][0]}")
            return
        self._seen[id(value)] = len(self._seen), value
        self._add(type(value).__qualname__)
        self._container(value)

    def _container(self, value: Any) -> None:
        if isinstance(value, dict):
            self._all([part for item in value.items() for part in item])
        elif isinstance(value, set | frozenset):
            self._all(sorted(value, key=repr))
        elif isinstance(value, tuple | list):
            self._type(type(value))
            self._all(value)
        else:
            self._code(value)

    def _code(self, value: Any) -> None:
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, CodeType):
            for field in _CODE_FIELDS:
                self._add(repr(getattr(value, field)))
            self._all(value.co_consts)
        elif isinstance(value, MethodType):
            self._all((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._all((value.func, value.args, value.keywords))
        elif isinstance(value, ModuleType):
            self._module(value)
        elif isinstance(value, type):
            self._type(value)
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            raise _NoFingerprint
        if isinstance(value, _NAMED) or type(value).__module__.startswith(OpOverload.__module__):
            self._add(f"{getattr(value, '__module__', '')} {getattr(value, '__qualname__', value)}")
        elif hasattr(value, "__wrapped__"):  # as functools.cache has it
            self.value(value.__wrapped__)
        elif dataclasses.is_dataclass(value):
            self._type(type(value))
            fields = dataclasses.fields(value)
            self._all([getattr(value, field.name) for field in fields])
        elif hasattr(value, "__dict__"):
            self._type(type(value))
            self.value(vars(value))
        else:
            raise _NoFingerprint

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.value(value)
        self._add("end")

    def _function(self, function: FunctionType) -> None:
        self._add(f"{function.__module__} {function.__qualname__}")
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        self._all((function.__defaults__, function.__kwdefaults__, cells))
        if _is_library(function.__module__):
            return
        self.value(function.__code__)
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self._add(name)
                self.value(function.__globals__[name])

    def _type(self, kind: type) -> None:
        self._add(f"{kind.__module__} {kind.__qualname__}")
        if not _is_library(kind.__module__):
            self._add(_source(sys.modules.get(kind.__module__)))
            methods = [part for part in vars(kind).values() if isinstance(part, FunctionType)]
            self._all(methods)

    def _module(self, module: ModuleType) -> None:
        self._add(module.__name__)
        if _is_library(module.__name__):
            return
        self._add(_source(module))
        modules = (part for part in vars(module).values() if isinstance(part, ModuleType))
        self._all(sorted(modules, key=lambda each: each.__name__))


def _names(code: CodeType) -> set[str]:
    """Return the global names that code, and the code inside it, may read."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_library(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    return top in ("torch", "funcnets") or (top in sys.stdlib_module_names and top != "__main__")


@functools.lru_cache(maxsize=1 << 10)
def _source_of(path: str, modified: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _source(module: ModuleType | None) -> str:
    """Return the hash of a module's file; empty if it has none."""
    path = getattr(module, "__file__", None)
    try:
        return _source_of(path, Path(path).stat().st_mtime_ns) if path else ""
    except OSError:
        return ""
