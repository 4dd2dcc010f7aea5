"""How long things take, measured in turns: a machine whose speed drifts treats them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

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
    """Seconds that each of `functions` took, by name: one call of each a round.

    Each round has another order, the same in each process, as what runs before leaves its traces
    in the caches.  With `seconds`, no round begins that late after the first; there is one at
    least.  What is slow the first time has to have been called before.  Raises ValueError for
    `rounds` below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected 1 or more")
    taken: dict[Name, list[float]] = {name: [] for name in functions}
    turns, draw = list(functions.items()), random.Random(0)
    first = clock()
    for done in range(rounds):
        if done and seconds is not None and clock() - first >= seconds:
            break
        for name, function in turns:
            started = clock()
            function()
            taken[name].append(clock() - started)
        draw.shuffle(turns)
    return taken


def medians(taken: Mapping[Name, list[float]]) -> dict[Name, float]:
    """The median of each list of seconds."""
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def repeat(step: Callable[..., Any], train_state: Any, batch: Any) -> Callable[[], float]:
    """A function that trains one more step on `batch` at each call, and gives its loss.

    It begins at a copy of `train_state`, so `step` may be donated it.
    """
    train_state = tree.map(lambda leaf: leaf.clone(), train_state)

    def run() -> float:
        nonlocal train_state
        train_state, measured = step(train_state, batch)
        return float(measured["loss"])

    return run
