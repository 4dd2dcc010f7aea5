"""What each part of a network gives, holds and costs, read off one run on meta tensors."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets.core import Apply, Layer, Params, State, rewrite, wrap

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
    rewrite(net, partial(_noted, rows)).apply(params, state, x)
    total = rows.pop("")
    found = [row for row in (*rows.values(), total) if row is not None]
    return [row for row in found if depth is None or _level(row) <= depth]


def _level(row: Row) -> int:
    return len(row.name.split(".")) if row.name else 0


def _noted(rows: dict[str, Row | None], name: str | None, layer: Layer) -> Layer:
    """The same layer, that writes its row, unless it has no name, while it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    if name is None:
        return layer

    def around(inner: Apply) -> Apply:
        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            rows[name] = None  # its place, before its parts take theirs
            with FlopCounterMode(display=False) as counter:
                y, state = inner(params, state, x, train=train, key=key)
            multiply_adds = counter.get_total_flops() // 2
            rows[name] = Row(name, layer.kind, tuple(y.shape), tree.count(params), multiply_adds)
            return y, state

        return apply

    return wrap(layer, around)


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
