"""Times at which a training is saved within an epoch: every so many steps, or minutes."""

import re
import time
from typing import Self

SECONDS = {"s": 1, "m": 60, "h": 3600}


class Cadence:
    """Tells when to save next.

    Args:
        steps: a save is due when the number of steps reaches a multiple of this, or passes it in
            a call of several steps; None for never.
        seconds: a save is due this long after the last one; None for never.
    """

    def __init__(self, steps: int | None = None, seconds: float | None = None) -> None:
        self.steps, self.seconds = steps, seconds
        self.saved(0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the cadence that is written as `500` (steps), `90s`, `10m` or `2h`.

        Raises ValueError for another text.

        >>> from funcnets.cli.cadence import Cadence
        >>> Cadence.parse("10m").seconds
        600
        """
        match = re.fullmatch(r"0*([1-9][0-9]{0,9})([smh]?)", text.strip())
        if not match:
            raise ValueError(
                f"--save-every is {text!r}; expected a number of steps, as 500, or a time, as 90s, "
                "10m or 2h"
            )
        number, unit = int(match[1]), match[2]
        return cls(seconds=number * SECONDS[unit]) if unit else cls(steps=number)

    def is_due(self, step: int) -> bool:
        """True if the training is to be saved after this step."""
        if self.steps is not None:
            return step // self.steps > self._saved_step // self.steps
        return self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds

    def saved(self, step: int) -> None:
        """Count the seconds and the steps from now, after this step, on."""
        self._saved_at, self._saved_step = time.monotonic(), step
