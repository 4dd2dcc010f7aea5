"""Back ends: a finished graph becomes a callable on tensors."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx

from funcnets import _torch
from funcnets.compiler.errors import CompileError

Backend = Literal["native", "graph", "inductor"]
BACKENDS: tuple[Backend, ...] = ("native", "graph", "inductor")
Executable = Callable[..., Sequence[Tensor]]


def usual_backend(device: torch.device | str) -> Backend:
    """The fastest back end for a device: on a CPU `native`, elsewhere `inductor`."""
    return "native" if str(device).startswith("cpu") else "inductor"


def training_backend(device: torch.device | str) -> Backend:
    """Return the back end by which a training of ten epochs is done soonest.

    On a GPU inductor compiles for one to four minutes, for steps 1.5 to 2.8 times as fast as those
    of `graph`, whose ten epochs of Fashion-MNIST take 2 to 130 seconds (on an H200).
    """
    return "native" if str(device).startswith("cpu") else "graph"


def compile_graph(
    graph: fx.GraphModule, backend: Backend, *, deterministic: bool = False
) -> Executable:
    """The graph as a function of its leaves: as it is, or compiled by inductor.

    Inductor compiles at the first call, which raises CompileError if that fails.  If
    `deterministic`, it chooses nothing by timing that decides in which order numbers are added.
    """
    _torch.write_code(graph)
    if backend != "inductor":
        return torch.no_grad()(graph.forward)
    return torch.no_grad()(_compile_at_first_call(graph, deterministic))


def _compile_at_first_call(graph: fx.GraphModule, deterministic: bool) -> Executable:
    compiled: Executable | None = None

    def call(*leaves: Tensor) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = _compile(graph, leaves, deterministic)
        return compiled(*leaves)

    return call


def _compile(graph: fx.GraphModule, leaves: Sequence[Tensor], deterministic: bool) -> Executable:
    try:
        with warnings.catch_warnings():
            # Whether products are rounded to TF32 is what `jit` was asked for.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            # Not by torch.compile, which would trace the graph again from its Python code, at each
            # start, and check at each call what `jit` knows already.
            executable: Executable = _torch.standalone_compile(
                graph, list(leaves), {"deterministic": True} if deterministic else {}
            )
        return executable
    except Exception as error:
        raise CompileError(
            f"jit: inductor can't compile this function ({_first_line(error)}): is a C++ "
            'compiler installed?  backend="graph" runs the traced graph without one'
        ) from error


def _first_line(error: Exception) -> str:
    error = getattr(error, "inner_exception", error)  # what the compiler wraps
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
