"""Watch the curvature of the loss while LeNet trains by full-batch gradient descent.

    python examples/sharpness.py --picture sharpness.png

At a constant rate the largest eigenvalue of the Hessian rises to about 2 / rate, beyond which
gradient descent on a quadratic diverges, and stays near: Cohen et al., Gradient descent on neural
networks typically occurs at the edge of stability, 2021.  Batch norm is in training mode.
"""

import argparse
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

import funcnets
from funcnets import data, losses, optim, random, train
from funcnets.transforms import curvature


class Row(NamedTuple):
    """What is measured before a step."""

    step: int
    loss: float
    sharpness: float
    trace: float
    error: float


def draw(rows: list[Row], rate: float, path: str) -> None:
    """Loss, sharpness and trace against the step, written to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    steps, loss, sharpness, traces, errors = map(list, zip(*rows, strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    axes[0].plot(steps, loss, color="#4c78a8")
    axes[0].set(title="training loss", xlabel="step", ylim=(0, None))
    axes[1].plot(steps, sharpness, color="#e4572e", marker=".")
    axes[1].axhline(2 / rate, color="black", linewidth=0.8, linestyle="--")
    axes[1].text(steps[-1], 2 / rate, "2 / rate", ha="right", va="bottom")
    axes[1].set(title="largest eigenvalue", xlabel="step", ylim=(0, None))
    axes[2].errorbar(steps, traces, errors, color="#54a24b", marker=".", capsize=2)
    axes[2].set(title="trace, and its standard error", xlabel="step")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--iterations", type=int, default=10, help="of Lanczos")
    parser.add_argument("--samples", type=int, default=4, help="for the trace")
    parser.add_argument("--limit-train", type=int, default=256)
    parser.add_argument("--data", help="a directory, or `bundled`")
    parser.add_argument("--backend", default="graph")
    parser.add_argument("--picture", default="sharpness.png")
    options = parser.parse_args(argv)
    dataset = data.limit(data.load(options.data), options.limit_train)
    images, labels = data.prepare(dataset.train_images, side=28), dataset.train_labels
    net, optimizer = funcnets.models.lenet_bn(), optim.sgd(options.rate)
    train_state = train.create(net, optimizer, random.key(0), images)
    step = funcnets.jit(train.make_train_step(net, optimizer), backend=options.backend)

    @partial(funcnets.jit, backend=options.backend)
    def product(params: Any, state: Any, vector: Any) -> Any:
        def loss(params: Any) -> Tensor:
            logits, _ = net.apply(params, state, images, train=True)
            return losses.cross_entropy(logits, labels)

        return curvature.hessian_product(loss, params, vector)

    rows = []
    for number in range(options.steps + 1):
        after, measured = step(train_state, (images, labels))
        if number % options.every == 0:
            along = partial(product, train_state.params, train_state.state)
            like, key = train_state.params, random.fold_in(random.key(1), number)
            largest = curvature.largest_eigenvalue(along, like, key, iterations=options.iterations)
            trace = curvature.trace(along, like, key, samples=options.samples)
            values = (measured["loss"], largest.value, trace.value, trace.error)
            rows.append(Row(number, *map(float, values)))
            print(
                f"step {number:4}: loss {rows[-1].loss:.4f}, largest eigenvalue "
                f"{rows[-1].sharpness:.3f}, trace {rows[-1].trace:.1f} ± {rows[-1].error:.1f}",
                flush=True,
            )
        train_state = after
    draw(rows, options.rate, options.picture)
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
