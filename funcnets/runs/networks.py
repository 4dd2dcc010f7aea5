"""Networks by name: those of `models.INDEX`, and others by a path `package.module:name`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from funcnets import interop, models
from funcnets.core import Layer
from funcnets.models import Recipe

# Of a network that comes with none; flags give other values.
USUAL_RECIPE = Recipe(learning_rate=0.1, batch_size=128, side=28, schedule="linear")


def is_imported(name: str) -> bool:
    """True if `name` is an import path."""
    return ":" in name


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is in the index, or has the form of an import path."""
    if not is_imported(name):
        if name not in models.INDEX:
            raise ValueError(f"expected one of {', '.join(models.INDEX)}, or package.module:name")
        return
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError("expected an import path such as package.module:name")


def recipe(name: str, recipe: str = "tuned") -> Recipe:
    """Return a network's recipe of this name.  Raises ValueError if there is none."""
    if not is_imported(name):
        return models.get(name, recipe)[1]
    if recipe != "tuned":
        raise ValueError(f"no recipe is called {recipe!r}: {name} has tuned alone")
    return USUAL_RECIPE


def shown_parameters(name: str) -> tuple[str, ...]:
    """Return the names of the parameters to show after a training."""
    return () if is_imported(name) else models.INDEX[name].shown


def has_dropout(name: str) -> bool:
    """True if the network takes the rate of its dropout."""
    if is_imported(name):
        with _working_directory():
            return "rate" in _parameters(_imported(name))
    return models.has_dropout(name)


def file_name(name: str) -> str:
    """Return the name of the network as a part of the name of a directory."""
    return name.replace(":", ".")


def build(name: str, classes: int, **options: Any) -> Layer:
    """Return the network called `name`, with as many logits as there are classes.

    An import path leads to a Layer; to an `nn.Module`, which is lifted with its values; or to a
    function or a class that gives one of the two.  It is called with `num_classes` if it takes
    this, and with the other options; the initial values of a module that it gives are drawn from
    the key.  The working directory is searched for the module of the path first.

    Raises ValueError for an unknown network, and for a path that can't be imported or leads to
    something else.
    """
    if not is_imported(name):
        # A network of ten classes may be one that takes no number of them.
        if classes != 10:
            options = {"num_classes": classes, **options}
        return models.get(name, **options)[0]
    with _working_directory():
        value = _imported(name)
        if isinstance(value, Layer):
            return value
        if isinstance(value, nn.Module):
            return interop.lift(value)
        if "num_classes" in _parameters(value):
            options = {"num_classes": classes, **options}
        made = _called(name, value, options)
    if isinstance(made, Layer):
        return made
    return interop.lift(_factory(name, value, options))


def _factory(name: str, make: Callable[..., Any], options: dict[str, Any]) -> Callable[[], Any]:
    def factory() -> nn.Module:
        with _working_directory():
            module: nn.Module = make(**options)
            return module

    return factory


@contextmanager
def _working_directory() -> Iterator[None]:
    """Let imports find modules in the working directory, as `python -m` does, in this context."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise ValueError(
            f"{name}: can't import {module} ({_first_line(error)}); start in the directory where "
            "it is, or install it"
        ) from error
    if not hasattr(found, attribute):
        raise ValueError(f"{name}: {module} has no {attribute}")
    value = getattr(found, attribute)
    if not (isinstance(value, Layer) or callable(value)):
        raise ValueError(
            f"{name}: is {type(value).__name__}; expected a Layer, an nn.Module, or a function "
            "that returns one"
        )
    return value


def _parameters(value: Any) -> Any:
    if isinstance(value, Layer | nn.Module):
        return {}
    try:
        return inspect.signature(value).parameters
    except (TypeError, ValueError):
        return {}


def _called(name: str, make: Callable[..., Any], options: dict[str, Any]) -> Layer | nn.Module:
    try:
        made = make(**options)
    except Exception as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        attribute = name.partition(":")[2]
        raise ValueError(f"{name}: {attribute}({given}) failed: {_first_line(error)}") from error
    if not isinstance(made, Layer | nn.Module):
        raise ValueError(
            f"{name}: returned {type(made).__name__}; expected a Layer or an nn.Module"
        )
    return made


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
