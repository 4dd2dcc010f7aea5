"""Compiling: a traced graph becomes a callable on tensors, by one of the named back ends."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx

Backend = Literal["inductor", "graph", "aot_eager"]
BACKENDS: tuple[Backend, ...] = ("inductor", "graph", "aot_eager")
Executable = Callable[..., Sequence[Tensor]]


class CompileError(RuntimeError):
    """A graph that the back end could not compile; `backend="graph"` runs it as it is."""


def compile_graph(graph: fx.GraphModule, backend: Backend) -> Executable:
    """The graph as a function of its leaves: as it is (`graph`), or through `torch.compile`.

    The first call compiles, and raises CompileError if that fails.
    """
    if backend == "graph":
        return torch.no_grad()(graph.forward)
    compiled = torch.compile(graph, backend=backend, fullgraph=True, dynamic=False)
    return _guard_first_call(torch.no_grad()(compiled), backend)


def _guard_first_call(compiled: Executable, backend: Backend) -> Executable:
    called = False

    def call(*leaves: Tensor) -> Any:
        nonlocal called
        if called:
            return compiled(*leaves)
        try:
            result = compiled(*leaves)
        except Exception as error:
            raise CompileError(
                f"jit: {backend} can't compile this function ({_first_line(error)}): is a C++ "
                'compiler installed?  backend="graph" runs the traced graph without one'
            ) from error
        called = True
        return result

    return call


def _first_line(error: Exception) -> str:
    error = getattr(error, "inner_exception", error)  # what the compiler wraps
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
