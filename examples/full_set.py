"""Train networks on the full set over several seeds, and print a table of the last epochs.

    python examples/full_set.py --nets lenet_bn lenet_bn_scratch --seeds 0 1 2 3 4

The step of a network is compiled once for each recipe, for all seeds.  A seed whose loss is no
longer a finite number is reported as diverged.
"""

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import time
from typing import Any

import arguments

import funcnets
from funcnets import data, models, precision, runs, train


def run(
    name: str,
    recipe_name: str,
    seeds: list[int],
    dataset: data.Dataset,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Train one network by one recipe from each seed; return a row for each seed."""
    chosen: dict[str, Any] = {} if options.epochs is None else {"epochs": options.epochs}
    config = runs.Config.from_recipe(
        name, recipe_name, device="cpu", precision=options.precision, **chosen
    )
    if config.normalize:
        mean, deviation = data.moments(dataset.train_images)
        config = dataclasses.replace(config, mean=mean, deviation=deviation)
    images, labels = dataset.train_images, dataset.train_labels
    steps = config.epochs * math.ceil(len(labels) / config.batch_size)
    net, optimizer = runs.build(config, steps)
    step = funcnets.jit(
        runs.make_step(config, net, optimizer), donate_argnums=0, backend=options.backend
    )
    policy = precision.POLICIES[config.precision]
    how: dict[str, Any] = {"prepare": runs.preparation(config), "policy": policy}
    eval_step = funcnets.jit(train.make_eval_step(net, **how), backend=options.backend)
    rows = []
    for seed in seeds:
        start = time.perf_counter()
        mine = dataclasses.replace(config, seed=seed)
        train_state = runs.create_train_state(mine, net, optimizer)
        row: dict[str, Any] = {"net": name, "recipe": recipe_name, "seed": seed}
        try:
            for progress in train.fit(
                step,
                train_state,
                (images, labels),
                batch_size=config.batch_size,
                epochs=config.epochs,
            ):
                last = progress
            test = train.evaluate(
                eval_step,
                *runs.evaluated(last.train_state),
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
    parser.add_argument("--recipes", nargs="+", choices=recipes, default=["reference", "tuned"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=arguments.positive, help="instead of the recipe's")
    parser.add_data(default=None)
    parser.add_limit()
    parser.add_backend()
    precisions = precision.available("cpu")
    parser.add_argument("--precision", default="float32", choices=precisions)
    options = parser.parse(argv)
    for name, recipe in itertools.product(options.nets, options.recipes):
        if recipe not in (known := models.INDEX[name].recipes):
            parser.error(f"argument --recipes: {name} has {', '.join(known)} alone")
    dataset = parser.load_data(options.data, options.limit_train)
    print(dataset.source)
    rows: list[dict[str, Any]] = []
    for name, recipe in itertools.product(options.nets, options.recipes):
        rows += run(name, recipe, options.seeds, dataset, options)
    print(table(rows))


if __name__ == "__main__":
    main()
