"""Signals that ask a training to stop."""

import math
import signal
import time
from signal import Signals
from types import FrameType
from typing import Any, NamedTuple

from funcnets.parallel import Processes

# Those of them that the system has.
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
# A terminal sends a signal to all of its processes, and a wrapper such as `timeout` or `torchrun`
# forwards what it got: within these seconds it is the same wish.
SECONDS_OF_ECHOES = 1.0

SECONDS_BETWEEN_AGREEMENTS = 0.2
MOST_STEPS_BETWEEN_AGREEMENTS = 1000


class Interrupt:
    """Context in which the first signal to stop is noted, and a later one exits at once.

    So the step under way can end, and be saved.  SIGHUP stays ignored if it was, as under `nohup`.

    Args:
        is_kept_after_error: True to go on noting after an error.  Torchrun sends a signal as soon
            as one process has gone, and the others have yet to say which.

    Attributes:
        signal: the signal that asked to stop, or None.
    """

    signal: Signals | None = None

    def __init__(self, *, is_kept_after_error: bool = False) -> None:
        self._is_kept_after_error, self._noted = is_kept_after_error, -math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in STOPPING:
            if number in (signal.SIGINT, signal.SIGTERM) or not _is_ignored(number):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_kept_after_error and kind is not None:
            return
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


class Wish(NamedTuple):
    """Wishes of a process after a step, and then the decision of all processes."""

    signal: Signals | None  # to stop after saving
    is_save_due: bool


class Agreement:
    """Lets all processes stop, and save, after the same step, whichever of them wants it.

    They ask each other only every so many steps, as many as take about a fifth of a second.  The
    number at most doubles, as one quick step, or none, tells little of how long the next ones take.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._steps, self._left, self._began = 1, 1, time.monotonic()

    def __call__(self, wish: Wish, *, is_due: bool = False) -> Wish:
        """Return what all processes do after a step, of which this one has that wish.

        `is_due`: ask now.  It must be the same in all processes.
        """
        if self.processes.axis.size == 1:
            return wish
        self._left -= 1
        if self._left > 0 and not is_due:
            return Wish(None, False)
        done, seconds = self._steps - self._left, max(time.monotonic() - self._began, 1e-6)
        steps = min(int(SECONDS_BETWEEN_AGREEMENTS * done / seconds), 2 * self._steps)
        steps = max(1, min(steps, MOST_STEPS_BETWEEN_AGREEMENTS))
        packed = ((wish.signal or 0) * 2 + wish.is_save_due) * 2**16 + steps
        wanted, steps = divmod(self.processes.maximum(packed), 2**16)
        self._steps, self._left, self._began = steps, steps, time.monotonic()
        number, is_save_due = divmod(wanted, 2)
        return Wish(Signals(number) if number else None, bool(is_save_due))
