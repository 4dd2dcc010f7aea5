"""Gradients of a batch by micro-batches: exactly, through batch norm, and in the usual cheap way.

    python examples/accumulation.py --batch-size 256 --micro-batch-size 64

Prints how far gradients and running statistics are from the whole batch's (relative, float64),
and the time of each relative to the whole batch's; they are timed in turns in one process.
"""

from functools import partial

import arguments
import torch

import funcnets
from funcnets import data, losses, random, timing, train, transforms, tree


def distance(values: object, expected: object) -> float:
    """Return the largest difference of two trees, relative to the largest number of the second."""
    pairs = list(zip(tree.leaves(values), tree.leaves(expected), strict=True))
    largest = max(float(right.abs().max()) for _, right in pairs)
    return max(float((left - right).abs().max()) for left, right in pairs) / largest


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--batch-size", type=arguments.positive, default=256)
    parser.add_argument("--micro-batch-size", type=arguments.positive, default=64)
    parser.add_argument("--rounds", type=arguments.positive, default=5)
    options = parser.parse(argv)
    dataset = data.load("bundled")
    if options.batch_size > len(dataset.train_labels):
        parser.error(f"argument --batch-size: there are {len(dataset.train_labels)} images")
    images = dataset.train_images[: options.batch_size]
    x = data.prepare(images, side=28, dtype=torch.float64)
    batch = (x, dataset.train_labels[: options.batch_size])
    net = funcnets.models.lenet_bn()
    params, state = net.init(random.key(0), x)
    size = options.micro_batch_size
    gradients = {
        "whole batch": train.batch_gradient,
        "micro-batches, exact": transforms.accumulate(size),
        "micro-batches, own statistics": transforms.accumulate(size, statistics="micro_batch"),
    }
    runs = {
        name: partial(gradient, net, losses.cross_entropy, params, state, batch)
        for name, gradient in gradients.items()
    }
    results = {name: run() for name, run in runs.items()}
    seconds = timing.medians(timing.interleave(runs, options.rounds))
    whole, whole_seconds = results["whole batch"], seconds["whole batch"]
    print("| | gradients | running statistics | time |\n|---|---|---|---|")
    for name, (grads, statistics, _) in results.items():
        differences = f"{distance(grads, whole[0]):.1e} | {distance(statistics, whole[1]):.1e}"
        print(f"| {name} | {differences} | {seconds[name] / whole_seconds:.1f} |")


if __name__ == "__main__":
    main()
