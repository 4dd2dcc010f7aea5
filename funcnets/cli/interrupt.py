"""Signals that ask a training to stop."""

import signal
from signal import Signals
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Context in which the first SIGINT or SIGTERM is noted, and a second one exits.

    So the step under way can end, and be saved.

    Attributes:
        signal: the signal that asked to stop, or None.
    """

    signal: Signals | None = None

    def __enter__(self) -> "Interrupt":
        self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = Signals(number)
