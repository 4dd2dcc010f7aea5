"""Rows of measurements as tables with units; values that all rows share are in the title."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

if TYPE_CHECKING:
    from rich.table import Table


class Unit(NamedTuple):
    """The unit of a field of a row, given as `Annotated[float, Unit("ms")]`.

    Attributes:
        unit: as it is printed, such as `examples/s`.
        heading: of the column; None for the name of the field.
    """

    unit: str
    heading: str | None = None


def render(rows: Sequence[NamedTuple]) -> "Table":
    """Return rows of one type, at least one, as a table for `rich`: a column for each field.

    Strings and integers that are the same in all rows are in the title, once.
    """
    from rich.table import Table

    first, *rest = (row._asdict() for row in rows)
    units = _units(type(rows[0]))
    shared = {
        name: value
        for name, value in first.items()
        if rest and isinstance(value, str | int) and all(row[name] == value for row in rest)
    }
    title = ", ".join(
        f"{units[name].heading} {_text(value)} {units[name].unit}".rstrip()
        for name, value in shared.items()
    )
    table = Table(title=title or None, title_justify="left")
    for name, value in first.items():
        if name not in shared:
            heading = f"{units[name].heading} ({units[name].unit})".removesuffix(" ()")
            justify: Any = "left" if isinstance(value, str) else "right"
            table.add_column(heading, justify=justify, overflow="fold")
    for row in (first, *rest):
        table.add_row(*(_text(value) for name, value in row.items() if name not in shared))
    return table


def _units(row: type[NamedTuple]) -> dict[str, Unit]:
    """Return the unit of each field, which is empty for a number or a text without one."""
    units = {}
    for name, hint in get_type_hints(row, include_extras=True).items():
        given = next((each for each in get_args(hint) if isinstance(each, Unit)), Unit(""))
        units[name] = given._replace(heading=given.heading or name.replace("_", " "))
    return units


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"
