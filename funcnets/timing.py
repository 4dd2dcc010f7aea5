"""Interleaved timing: functions are called in turns, so that a drifting machine is fair to all."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from funcnets import tree

Clock = Callable[[], float]
Name = TypeVar("Name")


def interleave(
    functions: Mapping[Name, Callable[[], object]],
    rounds: int,
    *,
    seconds: float | None = None,
    clock: Clock = time.perf_counter,
) -> dict[Name, list[float]]:
    """Return the seconds of each call of each function, by name.

    In each round every function is called once, in a random order that is the same in every
    process, as a function runs faster or slower after another.  Call functions that are slow at
    first, such as compiled ones, before.

    Args:
        functions: functions without arguments, by name.
        rounds: number of rounds.
        seconds: time after which no further round begins; None for no limit.
        clock: function that returns the time in seconds.

    Raises ValueError for `rounds` below 1.

    >>> from funcnets import timing
    >>> taken = timing.interleave({"sum": lambda: sum(range(9)), "max": lambda: max(range(9))}, 3)
    >>> {name: len(seconds) for name, seconds in taken.items()}
    {'sum': 3, 'max': 3}
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected 1 or more")
    taken: dict[Name, list[float]] = {name: [] for name in functions}
    turns, draw = list(functions.items()), random.Random(0)
    start = clock()
    for done in range(rounds):
        if done and seconds is not None and clock() - start >= seconds:
            break
        for name, function in turns:
            started = clock()
            function()
            taken[name].append(clock() - started)
        draw.shuffle(turns)
    return taken


def medians(taken: Mapping[Name, list[float]]) -> dict[Name, float]:
    """Return the median of each list of seconds."""
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def repeat(step: Callable[..., Any], train_state: Any, batch: Any) -> Callable[[], Tensor]:
    """Return a function that does one more training step on `batch` and returns its loss, 0-d.

    It doesn't wait for the device.  It begins with a copy of `train_state`, so `step` may donate
    its argument.
    """
    train_state = tree.map(lambda leaf: leaf.clone(), train_state)

    def next_step() -> Tensor:
        nonlocal train_state
        train_state, measured = step(train_state, batch)
        loss: Tensor = measured["loss"]
        return loss

    return next_step
