"""Train networks on the full set over several seeds, and print a table of the last epochs.

    python examples/full_set.py --nets lenet_bn lenet_bn_scratch --seeds 0 1 2 3 4

The step of a network is compiled once for each recipe, for all seeds.  A seed whose loss is no
longer a finite number is reported as diverged.
"""

import argparse
import json
import math
import statistics
import time
from functools import partial
from typing import Any

import arguments
import torch

import funcnets
from funcnets import data, optim, precision, random, train


def run(
    name: str,
    recipe_name: str,
    seeds: list[int],
    dataset: data.Dataset,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Train one network by one recipe from each seed; return a row for each seed."""
    net, recipe = funcnets.models.get(name, recipe_name)
    images, labels = dataset.train_images, dataset.train_labels
    epochs = options.epochs or recipe.epochs
    steps = epochs * math.ceil(len(labels) / recipe.batch_size)
    falling = optim.linear(recipe.learning_rate, steps)
    optimizer = optim.sgd(falling if recipe.schedule == "linear" else recipe.learning_rate)
    how: dict[str, Any] = {
        "prepare": partial(data.prepare, side=recipe.side),
        "policy": precision.POLICIES[options.precision],
    }
    step = funcnets.jit(
        train.make_train_step(net, optimizer, **how), donate_argnums=0, backend=options.backend
    )
    eval_step = funcnets.jit(train.make_eval_step(net, **how), backend=options.backend)
    example = torch.empty(1, 1, recipe.side, recipe.side, device="meta")
    rows = []
    for seed in seeds:
        start = time.perf_counter()
        train_state = train.create(net, optimizer, random.key(seed), example)
        row: dict[str, Any] = {"net": name, "recipe": recipe_name, "seed": seed}
        try:
            for progress in train.fit(
                step, train_state, (images, labels), batch_size=recipe.batch_size, epochs=epochs
            ):
                last = progress
            test = train.evaluate(
                eval_step,
                last.train_state.params,
                last.train_state.state,
                (dataset.test_images, dataset.test_labels),
            )
            row |= {
                "loss": last.running.loss,
                "train": last.running.accuracy,
                "test": test.accuracy,
            }
        except train.NonFiniteLoss as error:
            row |= {"diverged": str(error)}
        row["seconds"] = time.perf_counter() - start
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return medians and ranges over the seeds of each network and recipe."""
    lines = ["| net | recipe | seeds | loss | train | test | test, minimum to maximum |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, recipe in dict.fromkeys((row["net"], row["recipe"]) for row in rows):
        mine = [row for row in rows if (row["net"], row["recipe"]) == (name, recipe)]
        good = [row for row in mine if "test" in row]
        if not good:
            lines.append(f"| {name} | {recipe} | {len(mine)} | all diverged | | | |")
            continue
        loss, accuracy, test = (
            statistics.median(row[column] for row in good) for column in ("loss", "train", "test")
        )
        tests = sorted(row["test"] for row in good)
        seeds = f"{len(mine)}" + (
            f", {len(mine) - len(good)} diverged" if len(good) < len(mine) else ""
        )
        lines.append(
            f"| {name} | {recipe} | {seeds} | {loss:.3f} | {accuracy:.3f} | {test:.3f} "
            f"| {tests[0]:.3f} to {tests[-1]:.3f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    nets, recipes = arguments.NETWORKS, arguments.RECIPES
    parser.add_argument("--nets", nargs="+", choices=nets, default=["lenet_bn", "lenet_bn_scratch"])
    parser.add_argument("--recipes", nargs="+", choices=recipes, default=[*recipes])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=arguments.positive, help="instead of the recipe's")
    parser.add_data(default=None)
    parser.add_limit()
    parser.add_backend()
    precisions = precision.available("cpu")
    parser.add_argument("--precision", default="float32", choices=precisions)
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    print(dataset.source)
    rows: list[dict[str, Any]] = []
    for name in options.nets:
        for recipe in options.recipes:
            rows += run(name, recipe, options.seeds, dataset, options)
    print(table(rows))


if __name__ == "__main__":
    main()
