"""Pickling of networks: they consist of functions, so a call that makes one is pickled instead."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

# Packages that pickle functions themselves, by value.
_PICKLING_FUNCTIONS = {"cloudpickle", "dill"}


@dataclass(frozen=True)
class Origin:
    """Tag of a network that is `build(**options)`.

    Attributes:
        build: function that can be pickled: of a module, not of another function.
        options: its arguments.
        functions: `init` and `apply` of the network, which a changed network doesn't have.
    """

    build: Callable[..., Any]
    options: dict[str, Any]
    functions: tuple[Callable[..., Any], ...]


def reduced(layer: Any) -> tuple[Any, ...] | None:
    """Return what pickle keeps of a network; None to leave it to a package for functions.

    Raises TypeError, in words, where plain pickle would fail at a function of the network.
    """
    origin = layer.tag(Origin)
    if origin is not None and origin.functions == (layer.init, layer.apply):
        return remade, (origin.build, origin.options)
    if any(name.rpartition(".")[2] in _PICKLING_FUNCTIONS for name in list(sys.modules)):
        return None
    raise TypeError(
        f"pickle: {layer!r} consists of functions, which can't be pickled; expected a network of "
        "models.get or models.picklable: for another process build it there, make it by "
        "models.picklable(function), or use cloudpickle; to keep values, use funcnets.checkpoint"
    )


def with_origin(net: Any, build: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return `net`, which is `build(**options)`, with the tag that says so."""
    return replace(net, tags=(*net.tags, Origin(build, options, (net.init, net.apply))))


def remade(build: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return the network that was pickled."""
    return with_origin(build(**options), build, options)
