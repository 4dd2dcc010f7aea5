"""Rows of measurements as a table; what all of them share stands above it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table


def render(rows: Sequence[NamedTuple]) -> "Table":
    """Rows of one kind, at least one, as a table for `rich`: a column for each field.

    Names and whole numbers that are the same in all rows are told once, in the title.
    """
    from rich.table import Table

    first, *rest = (row._asdict() for row in rows)
    shared = {
        name: value
        for name, value in first.items()
        if rest and isinstance(value, str | int) and all(row[name] == value for row in rest)
    }
    told = [f"{_heading(name)} {_text(value)}" for name, value in shared.items()]
    table = Table(title=", ".join(told) or None, title_justify="left")
    for name, value in first.items():
        if name not in shared:
            justify = "left" if isinstance(value, str) else "right"
            table.add_column(_heading(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in (first, *rest):
        table.add_row(*(_text(value) for name, value in row.items() if name not in shared))
    return table


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"
