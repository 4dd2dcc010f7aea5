"""Standard output and standard error that are closed, or that nobody reads any more."""

import os
import sys
from typing import TextIO

NOBODY_READS = 141  # the exit code that a shell gives for SIGPIPE


def open_closed() -> None:
    """Have what is printed to a stream that was closed (`>&-`) go nowhere."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def silence(stream: TextIO) -> None:
    """Have what is printed, or still to be flushed, go nowhere, as its pipe is broken."""
    with _nowhere() as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
