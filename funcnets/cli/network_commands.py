"""Commands that describe networks: `funcnets summary` and `list`."""

import functools
import json as json_format
from typing import Annotated

import typer

from funcnets.cli import options, terminal


def summary_command(
    network: options.Network,
    input: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W",
            help="Shape of the input batch.",
            show_default="one image of the recipe's side",
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Levels of nested parts that are shown.", show_default="all"
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show output shape, parameters and multiply-adds of each part of a network."""
    from funcnets import models, summary

    net, recipe = models.get(network)
    try:
        shape = tuple(map(int, input.split(","))) if input else (1, 1, recipe.side, recipe.side)
    except ValueError:
        raise ValueError(f"--input is {input!r}; expected four numbers, as 1,1,224,224") from None
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"--input is {input!r}; expected four positive numbers, as 1,1,224,224")
    if depth is not None and depth < 0:
        raise ValueError(f"--depth is {depth}; expected 0 or more")
    rows = summary.summarize(net, shape, depth)
    if json:
        for row in rows:
            print(json_format.dumps(row._asdict()))
    else:
        terminal.show(summary.render(rows))


def list_command(json: options.Json = False) -> None:
    """List the networks, their parameters and their recipes."""
    from dataclasses import asdict

    from rich.table import Table

    from funcnets import models

    table = Table()
    for column in ("network", "parameters", "recipe", "rate", "schedule", "batch", "side"):
        is_name = column in ("network", "recipe", "schedule")
        table.add_column(column, justify="left" if is_name else "right")
    for name, entry in models.INDEX.items():
        for recipe_name, recipe in entry.recipes.items():
            parameters = _count_parameters(name, recipe.side)
            if json:
                row = {"network": name, "parameters": parameters, "recipe": recipe_name}
                print(json_format.dumps(row | asdict(recipe)))
            numbers = (recipe.learning_rate, recipe.schedule, recipe.batch_size, recipe.side)
            table.add_row(name, f"{parameters:,}", recipe_name, *map(str, numbers))
    if not json:
        terminal.show(table)


@functools.cache
def _count_parameters(network: str, side: int) -> int:
    """Return how many parameters a network has; nothing is computed."""
    import torch

    from funcnets import models, random, tree

    image = torch.empty(1, 1, side, side, device="meta")
    params, _ = models.get(network)[0].init(random.key(0, device="meta"), image)
    return tree.count(params)
