"""The command `funcnets find-lr`."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer

from funcnets.cli import options, pictures, terminal
from funcnets.cli.recipe_options import RECIPE_FIELDS, BatchSize, Recipe

FIELDS: dict[str, Any] = {
    "network": options.Network,
    "dataset": options.DataSet,
    "data": options.Data,
    "limit_train": options.LimitTrain,
    "side": options.Side,
    "normalize": options.Normalize,
    "recipe": Recipe,
    "batch_size": BatchSize,
    **{
        name: each
        for name, each in RECIPE_FIELDS.items()
        if name not in ("warmup", "ema", "accumulate")
    },
    "device": options.Device,
    "backend": options.Backend,
}
Lowest = Annotated[float, typer.Option(metavar="RATE", help="The first rate that is tried.")]
Highest = Annotated[float, typer.Option(metavar="RATE", help="The last rate that is tried.")]
Count = Annotated[int, typer.Option(metavar="N", help="Rates that are tried, evenly in log scale.")]
Steps = Annotated[int, typer.Option(metavar="N", help="Steps that each rate is tried for.")]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Draw the losses to a PNG or SVG file; needs matplotlib.",
        show_default="no picture",
    ),
]
TABLE: dict[str, Any] = {
    **FIELDS,
    "lowest": Lowest,
    "highest": Highest,
    "count": Count,
    "steps": Steps,
    "plot": Plot,
    "json": options.Json,
}
DEFAULTS = {"lowest": 1e-4, "highest": 10.0, "count": 11, "steps": 40}


@options.take(TABLE, DEFAULTS)
def find_lr_command(
    *,
    lowest: float,
    highest: float,
    count: int,
    steps: int,
    plot: Path | None,
    json: bool,
    **given: Any,
) -> None:
    """Try many learning rates for some steps, all at once, and suggest one.

    The rates are members of an ensemble, with the same initial values and batches.  Shown is the
    mean loss of the last quarter of the steps; the rate of the lowest one is suggested.  Nothing is
    written but the picture that --plot asks for.
    """
    from funcnets.cli import find_lr

    if plot is not None:
        pictures.check("--plot", plot)
    found = find_lr.try_rates(
        options.fields(FIELDS, given), find_lr.spread(lowest, highest, count), steps
    )
    if plot is not None:
        pictures.save("--plot", plot, find_lr.draw(found))
    if json:
        for row in found.rows:
            print(json_format.dumps(row._asdict()))
        return
    terminal.show(find_lr.table(found))
    for line in (find_lr.course(found), *find_lr.suggestion(found)):
        print(line)
    if plot is not None:
        print(f"picture: {plot}")
