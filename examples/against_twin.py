"""Train a network and its module twin alike, from the same values on the same batches.

    python examples/against_twin.py lenet_bn --seeds 0 1 2 3 4
    python examples/against_twin.py googlenet --steps 300 --every 100

Prints the mean loss of both for each interval of steps (an epoch, or `--every`), the test accuracy
of both at the end of each epoch, and a table of the first and the last interval.  The two differ by
rounding and by the masks of dropout; initial values and the order of images are the same.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import arguments
import torch
import torch.nn.functional as F
from torch import Tensor

import funcnets
from funcnets import data, interop, optim, random, train
from funcnets.models import Recipe
from funcnets.testing import twins
from funcnets.train import TrainState


class Twin:
    """A module with its optimizer and its evaluation."""

    def __init__(self, name: str, train_state: TrainState, rate: float) -> None:
        self.module = twins.get(name)
        values = interop.to_state_dict(train_state.params, train_state.state)
        self.module.load_state_dict(values, strict=False)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=rate)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take one step of SGD, and return the loss before it."""
        self.module.train()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.module(images), labels)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def accuracy(self, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """Return the fraction of the batches' images whose label the module predicts."""
        self.module.eval()
        right = [self.module(images).argmax(1) == labels for images, labels in batches]
        return float(torch.cat(right).float().mean())


def batches(
    dataset: data.Dataset, recipe: Recipe, key: Tensor, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the uint8 images and labels of the first `steps` batches, epoch after epoch."""
    count = len(dataset.train_labels)
    for epoch in range(math.ceil(steps / math.ceil(count / recipe.batch_size))):
        for indices in data.batches(data.shuffle(key, epoch, count), recipe.batch_size):
            yield dataset.train_images[indices], dataset.train_labels[indices]


class Interval(NamedTuple):
    """The mean losses of an interval of steps, which ends with step `last`."""

    last: int
    ours: float
    theirs: float


def compare(
    name: str, seed: int, dataset: data.Dataset, options: argparse.Namespace
) -> list[Interval]:
    """Train both, and print a line for each interval."""
    net, recipe = funcnets.models.get(name, "reference")
    recipe = replace(recipe, batch_size=options.batch_size or recipe.batch_size)
    prepare = partial(data.prepare, side=recipe.side)
    optimizer = optim.sgd(recipe.learning_rate)
    example = torch.empty(1, 1, recipe.side, recipe.side, device="meta")
    train_state = train.create(net, optimizer, random.key(seed), example)
    key, twin = train.shuffle_key(train_state), Twin(name, train_state, recipe.learning_rate)
    step = funcnets.jit(
        train.make_train_step(net, optimizer, prepare=prepare),
        donate_argnums=0,
        backend=options.backend,
    )
    eval_step = train.make_eval_step(net, prepare=prepare)
    test = (dataset.test_images, dataset.test_labels)
    epoch = math.ceil(len(dataset.train_labels) / recipe.batch_size)
    steps = options.steps or recipe.epochs * epoch
    every = options.every or epoch
    losses: list[tuple[float, float]] = []
    intervals: list[Interval] = []
    pairs = batches(dataset, recipe, key, steps)
    for number, (images, labels) in zip(range(1, steps + 1), pairs, strict=False):
        train_state, measured = step(train_state, (images, labels))
        losses.append((float(measured["loss"]), twin.step(prepare(images), labels)))
        if number % every and number != steps:
            continue
        ours, theirs = (sum(column) / len(losses) for column in zip(*losses, strict=True))
        intervals.append(Interval(number, ours, theirs))
        line = f"{name}, seed {seed}, step {number}: loss {ours:.4f}, twin {theirs:.4f}"
        if number % epoch == 0:
            params, state = train_state.params, train_state.state
            tested = train.evaluate(eval_step, params, state, test)
            chunks = zip(*(torch.split(part, 500) for part in test), strict=True)
            accuracy = twin.accuracy((prepare(images), labels) for images, labels in chunks)
            line += f"; test accuracy {tested.accuracy:.4f}, twin {accuracy:.4f}"
        print(line, flush=True)
        losses.clear()
    return intervals


def table(name: str, options: argparse.Namespace, runs: list[list[Interval]]) -> str:
    """Return a row for each seed: losses of both in the first and the last interval."""
    recipe = funcnets.models.get(name, "reference")[1]
    lines = [
        "| net | side | batch | seed | steps | loss | twin | steps | loss | twin |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, intervals in zip(options.seeds, runs, strict=True):
        first, last = intervals[0], intervals[-1]
        begun = intervals[-2].last + 1 if len(intervals) > 1 else 1
        cells = [name, recipe.side, options.batch_size or recipe.batch_size, seed]
        cells += [f"1–{first.last}", f"{first.ours:.3f}", f"{first.theirs:.3f}"]
        cells += [f"{begun}–{last.last}", f"{last.ours:.3f}", f"{last.theirs:.3f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("net", nargs="?", default="lenet_bn", choices=arguments.NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=arguments.positive, help="instead of the recipe's epochs")
    parser.add_argument("--every", type=arguments.positive, help="steps per line; default an epoch")
    parser.add_argument("--batch-size", type=arguments.positive, help="instead of the recipe's")
    parser.add_data(default=None)
    parser.add_limit()
    parser.add_backend()
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    print(dataset.source)
    runs = [compare(options.net, seed, dataset, options) for seed in options.seeds]
    print(table(options.net, options, runs))


if __name__ == "__main__":
    main()
