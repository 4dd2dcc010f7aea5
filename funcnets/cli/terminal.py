"""The terminal: standard streams that are closed or unread, and tables that are printed whole."""

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Column, Table

EXIT_CODE_OF_UNREAD_OUTPUT = 141  # as a shell has it for SIGPIPE
UNLIMITED_WIDTH = 10_000


def open_closed() -> None:
    """Open standard output and error if they were closed (`>&-`); what is printed is dropped."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def silence(stream: TextIO) -> None:
    """Drop what is printed, or still to be flushed, to a stream whose pipe is broken."""
    with _nowhere() as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def show(table: "Table") -> None:
    """Print a table.  In a narrow terminal names are folded; numbers, on the right, never are.

    It is wider than the terminal if that has no room for the longest words.
    """
    from rich.console import Console

    console = Console()
    wide = Console(width=UNLIMITED_WIDTH)
    if console.width < wide.measure(table).maximum:
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
