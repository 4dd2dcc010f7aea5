"""Every private or experimental name of PyTorch that this package uses; no other file has one.

Each was seen in the releases of `VERSIONS`.  Names that `jit` traces with are imported when they
are first used, as their import takes seconds; on another release `jit` records by PyTorch's
`make_fx` instead, with one warning, which takes longer and gives the same graphs.
"""

import functools
import importlib
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._C import _functorch as functorch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode as current_dispatch_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes

VERSIONS = ("2.11", "2.14")  # the first and the last release that was tried


BUFFERS = "_buffers"  # the attribute of a module that has its buffers


class Private(NamedTuple):
    """A private name of PyTorch."""

    module: str
    attribute: str
    without: str  # what happens if a release doesn't have it


_FAKE = "torch._subclasses.fake_tensor"
_PROXY = "torch.fx.experimental.proxy_tensor"
_RECORDING = "jit records by make_fx"
LAZY = {
    "DataDependentOutputException": Private(_FAKE, "DataDependentOutputException", _RECORDING),
    "DispatchKey": Private("torch._C", "DispatchKey", _RECORDING),
    "DisableAutocast": Private("torch._C", "_DisableAutocast", _RECORDING),
    "DynamicOutputShapeException": Private(_FAKE, "DynamicOutputShapeException", _RECORDING),
    "FakeTensor": Private(_FAKE, "FakeTensor", _RECORDING),
    "FakeTensorMode": Private(_FAKE, "FakeTensorMode", "jit and cost estimates can't trace"),
    "get_proxy_mode": Private(_PROXY, "get_proxy_mode", "jit can't see that make_fx traces it"),
    "in_kernel_invocation": Private(_FAKE, "in_kernel_invocation_manager", _RECORDING),
    "make_fx": Private(_PROXY, "make_fx", "jit can't record on a release that wasn't tried"),
    "unset_fake_temporarily": Private(_FAKE, "unset_fake_temporarily", _RECORDING),
}
EAGER = {
    "OpOverload": Private("torch._ops", "OpOverload", "operations of graphs can't be told apart"),
    "functorch": Private("torch._C", "_functorch", "transforms of torch.func can't be seen"),
    "TorchDispatchMode": Private("torch.utils._python_dispatch", "TorchDispatchMode", _RECORDING),
    "current_dispatch_mode": Private(
        "torch.utils._python_dispatch", "_get_current_dispatch_mode", "draws can't see a tracer"
    ),
    "dispatch_modes": Private(
        "torch.utils._python_dispatch", "_get_current_dispatch_mode_stack", _RECORDING
    ),
}

__all__ = [
    "BUFFERS",
    "EAGER",
    "LAZY",
    "DispatchMode",
    "OpOverload",
    "TorchDispatchMode",
    "compile_package",
    "current_dispatch_mode",
    "dispatch_modes",
    "functorch",
    "graph_builtins",
    "has_amx",
    "has_avx512_bfloat16",
    "has_backward_hooks",
    "import_collectives",
    "is_compiled",
    "is_known_version",
    "is_view",
    "lazy_graph_module",
    "load_package",
    "module_buffers",
    "standalone_compile",
    "storage_id",
    "version_of",
    "write_code",
]


class DispatchMode(TorchDispatchMode):
    """Mode whose `__torch_dispatch__` sees each operation; its constructor has types."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute, _ = LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def is_known_version() -> bool:
    """Return True if this release of PyTorch was tried; else warn, once."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    first, last = (tuple(map(int, version.split("."))) for version in VERSIONS)
    if first <= release <= last:
        return True
    _warn(torch.__version__)
    return False


@functools.cache
def _warn(version: str) -> None:
    warnings.warn(
        f"funcnets was tried with PyTorch {VERSIONS[0]} to {VERSIONS[1]}, not with {version}: jit "
        "records functions by make_fx, which takes longer",
        stacklevel=3,
    )


def storage_id(tensor: Tensor) -> int:
    """Return a number that is equal for tensors that share their memory, and only for these."""
    storage = tensor.untyped_storage()
    address: int = getattr(storage, "_cdata", None) or storage.data_ptr() or id(tensor)
    return address


def is_view(tensor: Tensor) -> bool:
    """Return True if a tensor is a view of another one; False if unknown."""
    return getattr(tensor, "_base", None) is not None


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written in place; 0 if it doesn't count."""
    # Inference tensors count no versions: a write to one goes unseen.
    return 0 if tensor.is_inference() else int(getattr(tensor, "_version", 0))


def module_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the table of a module's own buffers, which may be written to."""
    buffers: dict[str, Tensor | None] = vars(module)[BUFFERS]
    return buffers


def has_backward_hooks(module: nn.Module) -> bool:
    """Return True if a hook of this module runs in a backward pass."""
    return any(vars(module).get(name) for name in ("_backward_hooks", "_backward_pre_hooks"))


def is_compiled(module: nn.Module) -> bool:
    """Return True if `torch.compile` made this module, or its `compile` was called."""
    is_wrapper = "_orig_mod" in dict(module.named_children())
    return is_wrapper or vars(module).get("_compiled_call_impl") is not None


def has_avx512_bfloat16() -> bool:
    """Return True if the processor has AVX-512's products of bfloat16; False if unknown."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def has_amx() -> bool:
    """Return True if the processor has AMX tiles; False if unknown."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def graph_builtins() -> dict[str, Any]:
    """Return what the code of a graph may name, beside its arguments and Python's builtins."""
    known = getattr(importlib.import_module("torch.fx.graph"), "_custom_builtins", None)
    if known is None:
        return {"torch": torch, "device": torch.device, "inf": float("inf"), "nan": float("nan")}
    return {name: builtin.obj for name, builtin in known.items()}


def lazy_graph_module(root: Any, graph: fx.Graph) -> fx.GraphModule:
    """Return a graph module whose code is written when it is needed, not after each change."""
    try:
        module = importlib.import_module("torch.fx._lazy_graph_module")
    except ImportError:
        return fx.GraphModule(root, graph)
    made: fx.GraphModule = module._LazyGraphModule(root, graph)
    return made


def write_code(module: fx.GraphModule) -> None:
    """Have the code of a graph module written now."""
    getattr(type(module), "force_recompile", fx.GraphModule.recompile)(module)


def standalone_compile(graph: fx.GraphModule, leaves: list[Tensor], config: dict[str, Any]) -> Any:
    """Compile a graph by inductor for tensors like `leaves`; `config` has inductor's settings.

    Without the private name this goes through torch.compile, which traces the graph again.
    """
    inductor = getattr(torch, "_inductor", None) or importlib.import_module("torch._inductor")
    compile_alone = getattr(inductor, "standalone_compile", None)
    if compile_alone is None:
        how: Any = {"fullgraph": True, "dynamic": False, "options": config or None}
        return torch.compile(graph, backend="inductor", **how)
    options = {"config_patches": config} if config else None
    return compile_alone(graph, leaves, dynamic_shapes="from_example_inputs", options=options)


def compile_package(
    program: torch.export.ExportedProgram, path: str, options: dict[str, Any]
) -> None:
    """Compile an exported program by AOTInductor to a package in the file `path`."""
    inductor = importlib.import_module("torch._inductor")
    inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=options)


def load_package(path: str) -> Any:
    """Return the function in a package of AOTInductor, with its `get_metadata`."""
    return importlib.import_module("torch._inductor").aoti_load_package(path)


def import_collectives() -> None:
    """Let fake tensors know the shapes that functional collectives give."""
    importlib.import_module("torch.distributed._functional_collectives")
