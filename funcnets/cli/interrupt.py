"""Signals that ask a training to stop."""

import math
import signal
import time
from signal import Signals
from types import FrameType
from typing import Any

# Those of them that the system has.
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
# A terminal sends a signal to all of its processes, and a wrapper such as `timeout` or `torchrun`
# forwards what it got: within these seconds it is the same wish.
SECONDS_OF_ECHOES = 1.0


class Interrupt:
    """Context in which the first signal to stop is noted, and a later one exits at once.

    So the step under way can end, and be saved.  SIGHUP stays ignored if it was, as under `nohup`.

    Attributes:
        signal: the signal that asked to stop, or None.
    """

    signal: Signals | None = None

    def __init__(self) -> None:
        self._noted = -math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in STOPPING:
            if number in (signal.SIGINT, signal.SIGTERM) or not _is_ignored(number):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._noted = Signals(number), now
        elif now - self._noted >= SECONDS_OF_ECHOES:
            raise SystemExit(128 + number)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
