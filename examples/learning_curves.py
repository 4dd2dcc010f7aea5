"""Train networks and their modules by the reference recipe over several seeds, and compare.

    python examples/learning_curves.py --nets googlenet --seeds 0 1 2 --data DIR --device cuda

The module is trained as PyTorch users do: its own generator draws initial values (Xavier uniform
weights) and shuffles, torchvision resizes, `torch.optim.SGD` updates, autocast computes in
bfloat16.  A line of JSON for each epoch goes to standard output, and at the end a table of medians
and ranges over the seeds, with the step at which the loss left its first plateau.  With `--runs
DIR` each training is also a run directory in DIR, and `reference_table.py DIR` makes the table.
"""

import argparse
import inspect
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import arguments
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import funcnets
from funcnets import data, optim, precision, random, runs, train
from funcnets.models import Recipe
from funcnets.testing import twins

PLATEAU_LOSS = 2.0  # below it a network of 10 classes does better than chance, whose loss is 2.3
PLATEAU_STEPS = 25  # over which the loss is averaged


class Epoch(NamedTuple):
    """The measurements of an epoch of one training."""

    network: str
    way: str
    seed: int
    epoch: int
    loss: float
    train: float
    test: float
    plateau_left: int | None  # the first step whose recent losses are below PLATEAU_LOSS


class Losses:
    """The losses of a training, which are read from the device once an epoch."""

    def __init__(self) -> None:
        self.all: list[float] = []
        self.unread: list[Tensor] = []

    def read(self) -> None:
        """Read what was added since."""
        self.all += torch.stack(self.unread).tolist()
        self.unread.clear()

    @property
    def plateau_left(self) -> int | None:
        """The first step at which the mean of the last losses is below the plateau's."""
        for end in range(PLATEAU_STEPS, len(self.all) + 1):
            if statistics.fmean(self.all[end - PLATEAU_STEPS : end]) < PLATEAU_LOSS:
                return end
        return None


def changes(options: argparse.Namespace) -> dict[str, int]:
    """Return the fields of the recipe that options change, with their values."""
    given = {"epochs": options.epochs, "side": options.side}
    return {field: value for field, value in given.items() if value}


def functional(
    name: str, recipe: Recipe, seed: int, dataset: data.Dataset, options: argparse.Namespace
) -> Iterator[tuple[float, float, float, Losses]]:
    """Train the functional network, and yield loss, train and test accuracy of each epoch."""
    net, policy = funcnets.models.get(name)[0], precision.POLICIES[options.precision]
    how: dict[str, Any] = {"prepare": partial(data.prepare, side=recipe.side), "policy": policy}
    optimizer = optim.sgd(recipe.learning_rate)
    jit = partial(funcnets.jit, backend=options.backend, tf32=policy.tf32)
    step = jit(train.make_train_step(net, optimizer, **how), donate_argnums=0)
    eval_step = jit(train.make_eval_step(net, **how))
    example = torch.empty(1, 1, recipe.side, recipe.side, device="meta")
    train_state = train.create(net, optimizer, random.key(seed, options.device), example)
    if options.device != "cpu":
        train_state = precision.in_channels_last(train_state)
    losses = Losses()

    def noted(train_state: Any, batch: Any) -> Any:
        train_state, measured = step(train_state, batch)
        losses.unread.append(measured["loss"])
        return train_state, measured

    images = (dataset.train_images, dataset.train_labels)
    test = (dataset.test_images, dataset.test_labels)
    sizes = {"batch_size": recipe.batch_size, "epochs": recipe.epochs}
    for progress in train.fit(noted, train_state, images, **sizes):
        if progress.batch == progress.batches:
            losses.read()
            state = progress.train_state
            tested = train.evaluate(eval_step, state.params, state.state, test)
            yield progress.running.loss, progress.running.accuracy, tested.accuracy, losses


def module(
    name: str, recipe: Recipe, seed: int, dataset: data.Dataset, options: argparse.Namespace
) -> Iterator[tuple[float, float, float, Losses]]:
    """Train the module, and yield loss, train and test accuracy of each epoch."""
    from torchvision.transforms.v2.functional import resize  # type: ignore[import-untyped]

    options_of_twin = inspect.signature(type(twins.get(name))).parameters
    torch.manual_seed(seed)
    net = twins.get(name, **({"side": recipe.side} if "side" in options_of_twin else {}))
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    net.to(options.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.learning_rate)
    kind = torch.device(options.device).type
    cast = partial(torch.autocast, kind, torch.bfloat16, enabled=options.precision == "bfloat16")
    losses = Losses()

    def logits_of(images: Tensor) -> Tensor:
        x = resize(images, [recipe.side, recipe.side], antialias=True).float() / 255
        with cast():
            outputs: Tensor = net(x.contiguous(memory_format=torch.channels_last))
        return outputs.float()

    count = len(dataset.train_labels)
    for _ in range(recipe.epochs):
        net.train()
        total, right = (torch.zeros((), dtype=torch.float64, device=options.device),) * 2
        for indices in torch.randperm(count).to(options.device).split(recipe.batch_size):
            labels = dataset.train_labels[indices]
            logits = logits_of(dataset.train_images[indices])
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.unread.append(loss.detach())
            total = total + loss.detach().double() * len(labels)
            right = right + (logits.argmax(1) == labels).sum()
        losses.read()
        net.eval()
        with torch.no_grad():
            pairs = zip(dataset.test_images.split(500), dataset.test_labels.split(500), strict=True)
            hits = sum(int((logits_of(x).argmax(1) == labels).sum()) for x, labels in pairs)
        yield float(total) / count, float(right) / count, hits / len(dataset.test_labels), losses


WAYS: dict[str, Callable[..., Iterator[tuple[float, float, float, Losses]]]] = {
    "function": functional,
    "module": module,
}


class SavedRun:
    """The run directory of a training: a row for each epoch with a finite loss, and no checkpoint.

    `trained_by` in its environment.json is the way, `function` or `module`.
    """

    def __init__(
        self, name: str, way: str, seed: int, images: int, options: argparse.Namespace
    ) -> None:
        place = data.find(options.data)
        self.config = runs.Config.from_recipe(
            name,
            "reference",
            seed=seed,
            device=options.device,
            precision=options.precision,
            data="bundled" if place == data.BUNDLED else str(place.absolute()),
            limit_train=options.limit_train,
            **changes(options),
        )
        path = Path(options.runs) / f"{name}-reference-{way}-seed{seed}"
        self.directory = runs.RunDirectory.create(self.config, path)
        environment = self.directory.read_environment() | {"trained_by": way}
        (path / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
        self.steps = math.ceil(images / self.config.batch_size)
        self.rows: list[runs.EpochRow] = []
        self.begun = time.perf_counter()

    def add(self, row: Epoch) -> None:
        """Write the row of an epoch, unless its loss is no finite number."""
        if not math.isfinite(row.loss):
            return
        now = time.perf_counter()
        measured = (row.loss, row.train, None, row.test, None, now - self.begun)
        self.rows.append(runs.EpochRow(row.epoch, row.epoch * self.steps, *measured))
        self.directory.write_rows(self.rows)
        self.begun = now


def epochs_of(
    name: str, way: str, seed: int, dataset: data.Dataset, options: argparse.Namespace
) -> Iterator[Epoch]:
    """Yield the epochs of one training, until its loss is no finite number."""
    recipe = replace(funcnets.models.get(name, "reference")[1], **changes(options))
    found = WAYS[way](name, recipe, seed, dataset, options)
    try:
        for number, (loss, right, tested, losses) in enumerate(found, 1):
            yield Epoch(name, way, seed, number, loss, right, tested, losses.plateau_left)
            if not math.isfinite(loss):
                return
    except train.NonFiniteLoss:
        yield Epoch(name, way, seed, 0, math.nan, math.nan, math.nan, None)


def table(rows: list[Epoch]) -> str:
    """Return medians, minima and maxima over the seeds of the last epochs."""
    lines = ["| net | way | seeds | loss | train | test | plateau left at step |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, way in dict.fromkeys((row.network, row.way) for row in rows):
        last: dict[int, Epoch] = {}
        for row in rows:
            if (row.network, row.way) == (name, way):
                last[row.seed] = row
        cells = [name, way, str(len(last))]
        columns = zip(*((row.loss, row.train, row.test) for row in last.values()), strict=True)
        cells += [spread(column, ".3f") for column in columns]
        left = [row.plateau_left for row in last.values() if row.plateau_left is not None]
        cells.append(spread(left, ".0f") if left else "never")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, and the range in parentheses."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({least:{form}} to {most:{form}})"


def on_device(dataset: data.Dataset, device: str) -> data.Dataset:
    """Return the images and labels on a device."""
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return replace(dataset, **{part: getattr(dataset, part).to(device) for part in parts})


def start_run(
    parser: arguments.Parser,
    name: str,
    way: str,
    seed: int,
    dataset: data.Dataset,
    options: argparse.Namespace,
) -> SavedRun | None:
    """Make the run directory where one is asked for; end the example if that can't be done."""
    if options.runs is None:
        return None
    try:
        return SavedRun(name, way, seed, len(dataset.train_labels), options)
    except runs.RunError as error:
        parser.error(str(error))


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--nets", nargs="+", choices=arguments.NETWORKS, default=["googlenet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=[*WAYS])
    parser.add_argument("--epochs", type=arguments.positive, help="instead of the recipe's")
    parser.add_argument("--side", type=arguments.positive, help="pixels, instead of the recipe's")
    parser.add_argument("--precision", default="bfloat16", choices=tuple(precision.POLICIES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", help="the directory in which run directories are made")
    parser.add_data(default=None)
    parser.add_limit()
    parser.add_backend()
    options = parser.parse(argv)
    dataset = on_device(parser.load_data(options.data, options.limit_train), options.device)
    rows: list[Epoch] = []
    for name in options.nets:
        for seed in options.seeds:
            for way in options.ways:
                saved = start_run(parser, name, way, seed, dataset, options)
                for row in epochs_of(name, way, seed, dataset, options):
                    print(json.dumps(row._asdict()), flush=True)
                    rows.append(row)
                    if saved:
                        saved.add(row)
    print(table(rows))


if __name__ == "__main__":
    main()
