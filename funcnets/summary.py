"""Summary of a network: output shape, parameters and multiply-adds of each part."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets.core import Apply, Layer, LayerError, Params, State, rewrite, to_meta, wrap

if TYPE_CHECKING:
    from rich.table import Table


class Row(NamedTuple):
    """Summary of one part of a network."""

    name: str  # dotted path, as in the parameter tree; empty for the network itself
    kind: str
    shape: tuple[int, ...]  # shape of its output
    parameters: int
    multiply_adds: int  # in convolutions and matrix products, for the whole batch


def summarize(net: Layer, input_shape: Sequence[int], depth: int | None = None) -> list[Row]:
    """Return a row for each named part in order of execution, and one for the whole network last.

    A part comes before its own parts.  The network runs in evaluation on a meta tensor, so nothing
    is computed and no memory is used.

    Args:
        net: network.
        input_shape: shape of the input batch, (N, C, H, W).
        depth: number of levels of nested parts; None for all.

    Raises LayerError if the network can't take such an input, or if a layer needs its values.

    >>> from funcnets import models, summary
    >>> for row in summary.summarize(models.lenet_bn(), (1, 1, 28, 28))[-2:]:
    ...     print(row.name, row.kind, row.shape, row.parameters)
    fc3 linear(10) (1, 10) 850
     sequential (1, 10) 44878
    """
    rows: dict[str, Row | None] = {}
    x = torch.empty(tuple(input_shape), device="meta")
    observed = rewrite(net, partial(_with_row, rows))
    # A layer of a user's own may make its values on another device.
    params, state = to_meta(observed.init(random.key(0, device="meta"), x))
    rows.clear()  # of the passes in `init`, where parts come before the whole
    observed.apply(params, state, x)
    total = rows.pop("")
    found = [row for row in (*rows.values(), total) if row is not None]
    return [row for row in found if depth is None or _level(row) <= depth]


@contextmanager
def _explained(kind: str) -> Iterator[None]:
    """Raise LayerError where a layer fails because the tensors of a summary have no values."""
    try:
        yield
    except LayerError:
        raise
    except Exception as error:
        raise LayerError(
            f"{kind}: failed on a tensor on the meta device, which has a shape and no values "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}); "
            "expected tensor operations alone: make tensors on x.device, draw with funcnets.random "
            "and replace branches on values by torch.where"
        ) from error


def _level(row: Row) -> int:
    return len(row.name.split(".")) if row.name else 0


def _with_row(rows: dict[str, Row | None], name: str | None, layer: Layer) -> Layer:
    """Return the layer that writes its row to `rows` when it runs, if it has a name."""
    from torch.utils.flop_counter import FlopCounterMode

    if name is None:
        return layer

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        with _explained(layer.kind):
            return layer.init(key, x)

    def around(inner: Apply) -> Apply:
        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            rows[name] = None  # keeps the place before those of its parts
            with _explained(layer.kind), FlopCounterMode(display=False) as counter:
                y, state = inner(params, state, x, train=train, key=key)
            multiply_adds = counter.get_total_flops() // 2
            rows[name] = Row(name, layer.kind, tuple(y.shape), tree.count(params), multiply_adds)
            return y, state

        return apply

    return wrap(replace(layer, init=init), around)


def render(rows: Sequence[Row]) -> "Table":
    """Return the rows of `summarize` as a table of `rich`, indented by level."""
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
