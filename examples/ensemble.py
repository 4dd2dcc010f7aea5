"""Train networks at several learning rates in one step, and draw what their ensembles gain.

    python examples/ensemble.py --seeds 5 --rates 0.01 0.03 0.1 0.3 1 3 --picture ensemble.png

One ensemble has a member for each seed and learning rate.  The picture shows the test accuracy of
each member, and of the ensemble of each learning rate, and their expected calibration error (ECE):
the mean distance of confidence and accuracy over ten bins of confidence (Guo et al., "On
calibration of modern neural networks", 2017, equation 3).
"""

import argparse
from functools import partial
from typing import NamedTuple

import arguments
import torch
from torch import Tensor

import funcnets
from funcnets import data, losses, metrics, optim, random, train
from funcnets.data import Dataset
from funcnets.transforms import ensemble


class Row(NamedTuple):
    """Test results of the members of one learning rate, and of their ensemble, which is last."""

    rate: float
    accuracy: list[float]
    loss: list[float]
    calibration: list[float]


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Return the expected calibration error of logits (N, K), in [0, 1]."""
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).to(confidence.dtype)
    bin = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=confidence.dtype).index_add(0, bin, right - confidence)
    return float(gaps.abs().sum() / len(labels))


def measure(rate: float, logits: Tensor, labels: Tensor) -> Row:
    """Return a row from the logits (M, N, K) of the members of one learning rate."""
    each = [*logits, ensemble.combine_logits(logits)]
    return Row(
        rate,
        [float(metrics.accuracy(one, labels)) for one in each],
        [float(losses.cross_entropy(one, labels)) for one in each],
        [calibration_error(one, labels) for one in each],
    )


def run(dataset: Dataset, options: argparse.Namespace) -> list[Row]:
    """Train all members, and return a row for each learning rate."""
    net, recipe = funcnets.models.get(options.net)
    steps = options.epochs * -(-len(dataset.train_labels) // recipe.batch_size)
    optimizer = ensemble.rated(lambda rate: optim.sgd(optim.linear(rate, steps)), 0.1)
    keys = random.split(random.key(0), options.seeds).repeat(len(options.rates), 1)
    rates = torch.tensor(options.rates, dtype=torch.float64).repeat_interleave(options.seeds)
    prepare = partial(data.prepare, side=recipe.side)
    members = ensemble.create(net, optimizer, keys, prepare(dataset.train_images[:1]), rates)
    step = train.make_train_step(net, optimizer, prepare=prepare)
    step = ensemble.jit_step(step, donate_argnums=0, backend=options.backend)
    batch = (dataset.train_images, dataset.train_labels)
    for progress in ensemble.fit(
        step, members, batch, batch_size=recipe.batch_size, epochs=options.epochs
    ):
        members = progress.train_state
        if progress.batch == progress.batches:
            shown = " ".join(f"{one.accuracy:.2f}" for one in progress.running)
            print(f"epoch {progress.epoch + 1}: train accuracy {shown}", flush=True)
    parts = torch.split(dataset.test_images, 250)
    logits = torch.cat(
        [
            ensemble.member_logits(net, members.params, members.state, prepare(images))
            for images in parts
        ],
        1,
    )
    groups = zip(options.rates, torch.split(logits, options.seeds), strict=True)
    return [measure(rate, group, dataset.test_labels) for rate, group in groups]


def draw(rows: list[Row], path: str) -> None:
    """Draw accuracy and calibration error by learning rate, of members and ensembles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    rates = [row.rate for row in rows]
    for axis, field, title in zip(
        axes,
        ("accuracy", "calibration"),
        ("test accuracy", "expected calibration error"),
        strict=True,
    ):
        for index in range(len(rows[0].accuracy) - 1):
            values = [getattr(row, field)[index] for row in rows]
            label = "members" if index == 0 else None
            axis.plot(rates, values, "o", color="tab:gray", alpha=0.6, markersize=5, label=label)
        values = [getattr(row, field)[-1] for row in rows]
        axis.plot(rates, values, "D-", color="tab:blue", label="their ensemble")
        axis.set(xscale="log", xlabel="learning rate", title=title)
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="best")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("net", nargs="?", default="lenet_bn", choices=arguments.NETWORKS)
    parser.add_argument("--seeds", type=arguments.positive, default=5, help="members of each rate")
    rates = [0.01, 0.03, 0.1, 0.3, 1, 3]
    parser.add_argument("--rates", type=arguments.above_zero, nargs="+", default=rates)
    parser.add_argument("--epochs", type=arguments.positive, default=5)
    parser.add_limit()
    parser.add_data()
    parser.add_backend()
    parser.add_picture("ensemble.png")
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    print(dataset.source)
    rows = run(dataset, options)
    print(
        "| rate | accuracy, median | ensemble | loss, median | ensemble | ECE, median | ensemble |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row.accuracy, row.loss, row.calibration]
        shown = [f"{float(torch.tensor(c[:-1]).median()):.3f} | {c[-1]:.3f}" for c in cells]
        print(f"| {row.rate:g} | {' | '.join(shown)} |")
    draw(rows, options.picture)
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
