"""Commands that describe networks: `funcnets summary` and `list`."""

import json as json_format
from typing import Annotated

import typer

from funcnets.cli import options, terminal

# Parameters of the networks for 10 classes and grey images, which take seconds to count.
PARAMETERS = {
    "alexnet": 46764746,
    "vgg11": 128806154,
    "vgg13": 128990666,
    "vgg16": 134300362,
    "vgg19": 139610058,
    "nin": 1992166,
    "googlenet": 2938298,
    "googlenet_paper": 5977530,
    "lenet_bn": 44878,
    "lenet_bn_scratch": 44878,
    "resnet18": 11178378,
    "resnet34": 21290250,
    "resnet50": 23541130,
    "densenet": 758226,
}


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
    from funcnets import summary
    from funcnets.runs import networks

    net, recipe = networks.build(network, 10), networks.recipe(network)
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
    """List the networks by family, with their parameters and what the recipe tuned has for them."""
    import itertools
    from dataclasses import asdict

    from rich.table import Table

    from funcnets import models

    table = Table()
    words = ("network", "optimizer")
    for column in ("network", "parameters", "side", "batch", "optimizer", "rate"):
        table.add_column(column, justify="left" if column in words else "right")
    for _, family in itertools.groupby(models.INDEX.items(), lambda item: item[1].family):
        for name, entry in family:
            recipe = entry.recipes["tuned"]
            parameters = PARAMETERS.get(name) or count_parameters(name, recipe.side)
            for recipe_name, each in entry.recipes.items() if json else ():
                row = {"network": name, "parameters": parameters, "recipe": recipe_name}
                print(json_format.dumps(row | asdict(each)))
            values = (recipe.side, recipe.batch_size, recipe.optimizer, recipe.learning_rate)
            table.add_row(name, f"{parameters:,}", *map(str, values))
        table.add_section()
    if not json:
        terminal.show(table)
        print(
            "for 10 classes and grey images; the recipe reference has the published values: SGD\n"
            "at a constant rate where tuned has a linear schedule, and batches of 256 for LeNet;\n"
            f"the recipe best, for {_with_best()},\n"
            "has more epochs, augmentation and an average of the parameters"
        )


def _with_best() -> str:
    """Return the names of the networks that have the recipe best, for a sentence."""
    from funcnets import models

    return ", ".join(name for name, entry in models.INDEX.items() if "best" in entry.recipes)


def count_parameters(network: str, side: int) -> int:
    """Return how many parameters a network has; nothing is computed."""
    import torch

    from funcnets import models, random, tree

    image = torch.empty(1, 1, side, side, device="meta")
    params, _ = models.get(network)[0].init(random.key(0, device="meta"), image)
    return tree.count(params)
