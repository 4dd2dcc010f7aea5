"""What each part of a network gives, holds and costs, read off one run on meta tensors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets.core import Layer, Params, State, map_parts

if TYPE_CHECKING:
    from rich.table import Table


class Row(NamedTuple):
    """One part of a network."""

    name: str  # dotted, as in the parameter tree; empty for the network itself
    kind: str
    shape: tuple[int, ...]  # of its output
    parameters: int
    multiply_adds: int  # of its convolutions and matrix products, for the whole batch


def summarize(net: Layer, input_shape: Sequence[int], depth: int | None = None) -> list[Row]:
    """A row for each named part, nested `depth` levels deep (None: all), and the whole net last.

    The net runs once, in evaluation, on a meta tensor of `input_shape`, (N, C, H, W): nothing is
    computed and no memory taken.  Parts stand in the order in which they run, a part before its
    own parts.  Raises LayerError where the net can't take such an input.
    """
    rows: dict[str, Row | None] = {}
    x = torch.empty(tuple(input_shape), device="meta")
    params, state = net.init(random.key(0, device="meta"), x)
    _noted(net, (), rows).apply(params, state, x)
    total = rows.pop("")
    found = [row for row in (*rows.values(), total) if row is not None]
    return [row for row in found if depth is None or _level(row) <= depth]


def _level(row: Row) -> int:
    return len(row.name.split(".")) if row.name else 0


def _noted(layer: Layer, path: tuple[str, ...], rows: dict[str, Row | None]) -> Layer:
    """The same layer, that writes its own row and those of its parts while it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    watched, name = _watched(layer, path, rows), ".".join(path)

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        rows[name] = None  # its place, before its parts take theirs
        with FlopCounterMode(display=False) as counter:
            y, state = watched.apply(params, state, x, train=train, key=key)
        multiply_adds = counter.get_total_flops() // 2
        rows[name] = Row(name, layer.kind, tuple(y.shape), tree.count(params), multiply_adds)
        return y, state

    return replace(watched, apply=apply)


def _watched(layer: Layer, path: tuple[str, ...], rows: dict[str, Row | None]) -> Layer:
    def part(name: str | None, inner: Layer) -> Layer:
        if name is None:
            return _watched(inner, path, rows)
        return _noted(inner, (*path, name), rows)

    return map_parts(layer, part)


def render(rows: Sequence[Row]) -> "Table":
    """The rows of `summarize` as a table for `rich`, indented by level."""
    from rich.table import Table

    table = Table("part", "kind", "output", show_footer=False)
    for heading in ("parameters", "multiply-adds"):
        table.add_column(heading, justify="right")
    for row in rows:
        if not row.name:
            table.add_section()
        *above, last = row.name.split(".")
        table.add_row(
            "  " * len(above) + last if row.name else "total",
            row.kind if row.name else "",
            ", ".join(map(str, row.shape)),
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
        )
    return table
