"""Compiling: a traced graph becomes a callable on tensors, by one of the named back ends."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.fx._lazy_graph_module import _LazyGraphModule

from funcnets.compiler.errors import CompileError

Backend = Literal["native", "graph", "inductor", "aot_eager"]
BACKENDS: tuple[Backend, ...] = ("native", "graph", "inductor", "aot_eager")
COMPILED: tuple[Backend, ...] = ("inductor", "aot_eager")  # by PyTorch, in half a minute or so
Executable = Callable[..., Sequence[Tensor]]


def usual_backend(device: torch.device | str) -> Backend:
    """The fastest back end for a device: on a CPU `native`, elsewhere `inductor`."""
    return "native" if str(device).startswith("cpu") else "inductor"


def compile_graph(graph: fx.GraphModule, backend: Backend) -> Executable:
    """The graph as a function of its leaves: as it is, or compiled by PyTorch.

    The first call compiles, and raises CompileError if that fails.
    """
    _LazyGraphModule.force_recompile(graph)
    if backend not in COMPILED:
        return torch.no_grad()(graph.forward)
    return torch.no_grad()(_compile_at_first_call(graph, backend))


def _compile_at_first_call(graph: fx.GraphModule, backend: Backend) -> Executable:
    compiled: Executable | None = None

    def call(*leaves: Tensor) -> Any:
        nonlocal compiled
        if compiled is not None:
            return compiled(*leaves)
        try:
            executable = _compile(graph, backend, leaves)
            result = executable(*leaves) if backend == "aot_eager" else None
        except Exception as error:
            raise CompileError(
                f"jit: {backend} can't compile this function ({_first_line(error)}): is a C++ "
                'compiler installed?  backend="graph" runs the traced graph without one'
            ) from error
        compiled = executable
        # An error from here on is one of the function's, and not of compiling it.
        return executable(*leaves) if result is None else result

    return call


def _compile(graph: fx.GraphModule, backend: Backend, leaves: Sequence[Tensor]) -> Executable:
    if backend == "inductor":
        # Not by torch.compile, which would trace the graph again from its Python code, at each
        # start, and check at each call what `jit` knows already.
        return torch._inductor.standalone_compile(
            graph, list(leaves), dynamic_shapes="from_example_inputs"
        )
    return torch.compile(graph, backend=backend, fullgraph=True, dynamic=False)


def _first_line(error: Exception) -> str:
    error = getattr(error, "inner_exception", error)  # what the compiler wraps
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
