"""Variants of networks: functions with some arguments of another function."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from funcnets.core import Layer


def variant(
    name: str, doc: str, build: Callable[..., Layer], /, *args: Any, **options: Any
) -> Callable[..., Layer]:
    """Return `partial(build, *args, **options)` as a function with a name and a docstring.

    `help`, the API reference and pickle know a function by these, but not a partial.
    """
    bound = partial(build, *args, **options)

    def function(*args: Any, **options: Any) -> Layer:
        return bound(*args, **options)

    function.__name__ = function.__qualname__ = name
    function.__doc__, function.__module__ = doc, build.__module__
    function.__signature__ = inspect.signature(bound)  # type: ignore[attr-defined]
    return function
