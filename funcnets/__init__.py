"""The classic convolutional networks as pure functions over parameter trees, in PyTorch.

A part is imported when it is first asked for, so that the command line answers without PyTorch.
"""

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funcnets import (
        checkpoint,
        core,
        data,
        initializers,
        interop,
        layers,
        losses,
        metrics,
        models,
        optim,
        precision,
        random,
        summary,
        train,
        transforms,
        tree,
    )
    from funcnets.core import Layer, LayerError, concat, dense, residual, sequential
    from funcnets.jit import jit

__version__ = "0.1.0"
__all__ = [
    "Layer",
    "LayerError",
    "checkpoint",
    "concat",
    "core",
    "data",
    "dense",
    "initializers",
    "interop",
    "jit",
    "layers",
    "losses",
    "metrics",
    "models",
    "optim",
    "precision",
    "random",
    "residual",
    "sequential",
    "summary",
    "train",
    "transforms",
    "tree",
]

# The modules of those names that aren't modules.
_HOMES = dict.fromkeys(("Layer", "LayerError", "concat", "dense", "residual", "sequential"), "core")


class _Package(ModuleType):
    """This module, whose parts come when they are asked for; `jit` is the function, always."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
        setattr(self, name, getattr(home, name) if name in _HOMES else home)
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        # Whoever first imports from the subpackage funcnets.jit has Python put it here.
        if name == "jit" and isinstance(value, ModuleType):
            value = value.jit
        super().__setattr__(name, value)

    def __dir__(self) -> Iterable[str]:
        return {*super().__dir__(), *__all__}


sys.modules[__name__].__class__ = _Package
