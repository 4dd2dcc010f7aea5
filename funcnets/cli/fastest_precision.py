"""`--precision auto`: the precision whose training step is the fastest here."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import SupportsFloat

from funcnets import timing


def fastest_precision(
    steps: Mapping[str, Callable[[], SupportsFloat | None]],
    *,
    rounds: int = 3,
    clock: timing.Clock = time.perf_counter,
) -> tuple[str, str]:
    """Return the name of the fastest of `steps`, and one line that says so with the times.

    A step returns its loss, for which it is waited.  Each runs twice before it is timed, as its
    first call compiles, and then once a round, in turns with the others.  The median decides.
    """
    waited = {name: partial(_wait_for, step) for name, step in steps.items()}
    for step in waited.values():
        step()
        step()
    seconds = timing.medians(timing.interleave(waited, rounds, clock=clock))
    fastest = min(seconds, key=lambda name: seconds[name])
    measured = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
    return fastest, f"precision {fastest}, chosen by the median step: {measured}"


def _wait_for(step: Callable[[], SupportsFloat | None]) -> None:
    """Do a step, and wait for the device that computes it."""
    loss = step()
    if loss is not None:
        float(loss)
