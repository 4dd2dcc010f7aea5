"""The terminal: standard streams that can't be written, and tables that are printed whole."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.table import Column, Table

EXIT_CODE_OF_UNREAD_OUTPUT = 141  # as a shell has it for SIGPIPE
UNLIMITED_WIDTH = 10_000
LEVELS_OF_BLOCKS = "▁▂▃▄▅▆▇█"
LEVELS_IN_ASCII = "_.-~=+*#"
SPARKLINE_WIDTH = 60


def open_streams() -> None:
    """Make standard output and error fit for whatever is printed.

    What is printed to a closed one (`>&-`) is dropped, and a character that the encoding of a
    terminal lacks is shown as a question mark.
    """
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def silence(stream: TextIO) -> None:
    """Drop what is printed, or still to be flushed, to a stream that can't be written."""
    with contextlib.suppress(OSError, ValueError), _nowhere() as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def write(text: str, stream: TextIO) -> OSError | None:
    """Write to a stream at once, and return why it can't be written, if so.

    Everything that is written to such a stream later is dropped.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        silence(stream)
        return error
    return None


def warning_line(text: str) -> str:
    """Return a warning as the command line prints it.

    >>> from funcnets.cli import terminal
    >>> terminal.warning_line("funcnets: the disk\\nis full")
    'funcnets: warning: the disk is full'
    """
    return f"funcnets: warning: {' '.join(text.removeprefix('funcnets: ').split())}"


def show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    """Print a warning of any module in one line, in place of `warnings.showwarning`."""
    write(f"{warning_line(str(message))}\n", sys.stderr)


class Unfailing:
    """Text stream like another one, which never fails.

    Args:
        stream: the other stream.
        failed: told why it can't be written; what is written later is dropped.
    """

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self.stream, self.failed = stream, failed

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        if error := write(text, self.stream):
            self.failed(error)
        return len(text)

    def flush(self) -> None:
        """Do nothing, as everything is written at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def sparkline(values: Sequence[float]) -> str:
    """Return a line of at most 60 characters, each as high as its value, from lowest to highest.

    They are blocks on a terminal that has them, and ASCII in logs and pipes.

    >>> from funcnets.cli import terminal
    >>> terminal.sparkline([0.2, 0.5, 0.9])
    '_~#'
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
    levels = LEVELS_OF_BLOCKS if sys.stdout.isatty() and "utf" in encoding else LEVELS_IN_ASCII
    count = min(len(values), SPARKLINE_WIDTH)
    chosen = [values[(i + 1) * len(values) // count - 1] for i in range(count)]
    lowest = min(chosen, default=0.0)
    span = max(chosen, default=0.0) - lowest or 1.0
    return "".join(levels[int((value - lowest) / span * 7)] for value in chosen)


def show(table: "Table") -> None:
    """Print a table.  In a narrow terminal columns stand closer, or else names are folded.

    Numbers, on the right, are never folded.  It is wider than the terminal if that has no room for
    the longest words.
    """
    from rich.console import Console

    # Names of classes and layers are texts, in which brackets mean nothing.
    plain: dict[str, Any] = {"markup": False, "emoji": False}
    console = Console(**plain)
    wide = Console(width=UNLIMITED_WIDTH, **plain)
    usual = table.padding
    if console.width < wide.measure(table).maximum:
        table.padding = (0, 0, 0, 0)
    if console.width < wide.measure(table).maximum:
        table.padding = usual
        for column in table.columns:
            column.overflow = "fold"
            if column.justify == "right":
                column.width = _longest_word(column)
        console.width = max(console.width, wide.measure(table).minimum)
    console.print(table)


def _longest_word(column: "Column") -> int:
    from rich.cells import cell_len

    words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
    return max(map(cell_len, words), default=0)
