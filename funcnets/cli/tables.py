"""How tables are printed: whole, however narrow the terminal is."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

UNLIMITED = 10_000


def show(table: Table) -> None:
    """Print a table; where there is no room, names are folded, and numbers, on the right, never.

    It is wider than the terminal where that has no room for the longest words.
    """
    console = Console()
    wide = Console(width=UNLIMITED)
    if console.width < wide.measure(table).maximum:
        for column in table.columns:
            column.overflow = "fold"
            if column.justify == "right":
                column.width = _longest_word(column)
        console.width = max(console.width, wide.measure(table).minimum)
    console.print(table)


def _longest_word(column: Column) -> int:
    words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
    return max(map(cell_len, words), default=0)
