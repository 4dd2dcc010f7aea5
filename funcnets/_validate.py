"""Checks of hyper-parameters."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def check(name: str, value: Any, accept: Callable[[Any], bool], expected: str) -> None:
    """Raise ValueError unless `value` is a number for which `accept` is True.

    The message calls it `name`, and says what is `expected`.
    """
    if not (isinstance(value, Real) and accept(value)):
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def is_whole(value: Any, least: int) -> bool:
    """Return True if `value` is a whole number, `least` or more."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_non_negative(**values: Any) -> None:
    """Raise ValueError unless each of `values` is a finite number, 0 or more."""
    for name, value in values.items():
        check(name, value, lambda value: 0 <= value < math.inf, "a finite number, 0 or more")


def check_steps(**values: Any) -> None:
    """Raise ValueError unless each of `values` is a whole number of steps, 1 or more."""
    for name, value in values.items():
        check(name, value, lambda value: value >= 1 and value == int(value), "1 or more steps")


def check_rate(**values: Any) -> None:
    """Raise ValueError unless each is a finite number, 0 or more, or a floating 0-d tensor.

    Of a tensor only rank and dtype are checked: its value can't be read while it is traced.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            check_non_negative(**{name: value})
        elif value.ndim or not value.is_floating_point():
            raise ValueError(
                f"{name} is a tensor of shape {tuple(value.shape)} and {value.dtype}; expected a "
                "0-d floating tensor; for a rate of each model use vmap"
            )
