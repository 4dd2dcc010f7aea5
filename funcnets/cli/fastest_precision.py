"""`--precision auto`: the precision whose training step is the fastest here."""

import time
from collections.abc import Callable, Mapping

from funcnets import timing


def fastest_precision(
    steps: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 3,
    clock: timing.Clock = time.perf_counter,
) -> tuple[str, str]:
    """Return the name of the fastest of `steps`, and one line that says so with the times.

    Each step runs twice before it is timed, as its first call compiles, and then once a round, in
    turns with the others.  The median decides.
    """
    for step in steps.values():
        step()
        step()
    seconds = timing.medians(timing.interleave(steps, rounds, clock=clock))
    fastest = min(seconds, key=lambda name: seconds[name])
    measured = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
    return fastest, f"precision {fastest}, chosen by the median step: {measured}"
