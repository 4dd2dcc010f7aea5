"""Measure the curvature of the loss while LeNet trains by full-batch gradient descent.

    python examples/sharpness.py --picture sharpness.png

Gradient descent on a quadratic diverges if an eigenvalue is above 2 / rate.  The largest eigenvalue
of the Hessian comes down to one to three times that, and stays there while the loss falls: at the
larger learning rate the network is where the loss is flatter, also by its trace.  Batch norm is in
training mode.  Cohen et al., "Gradient descent on neural networks typically occurs at the edge of
stability", 2021.
"""

from functools import partial
from typing import Any, NamedTuple

import arguments
from torch import Tensor

import funcnets
from funcnets import data, losses, optim, random, train
from funcnets.transforms import curvature


class Row(NamedTuple):
    """Measurements before a step."""

    step: int
    loss: float
    sharpness: float
    trace: float
    error: float


def draw(found: dict[float, list[Row]], path: str) -> None:
    """Draw loss, sharpness and trace by step, a line for each learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for number, (rate, rows) in enumerate(found.items()):
        steps, loss, sharpness, traces, errors = map(list, zip(*rows, strict=True))
        style = {"color": f"C{number}", "marker": ".", "label": f"rate {rate:g}"}
        axes[0].plot(steps, loss, **style)
        axes[1].plot(steps, sharpness, **style)
        axes[1].axhline(2 / rate, color=style["color"], linewidth=0.8, linestyle="--")
        axes[2].errorbar(steps, traces, errors, capsize=2, **style)
    axes[0].set(title="training loss", xlabel="step", ylim=(0, None))
    axes[1].set(title="largest eigenvalue (dashed: 2 / rate)", xlabel="step", yscale="log")
    axes[2].set(title="trace, and its standard error", xlabel="step")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


class Options(NamedTuple):
    """Options of the measurements."""

    steps: int
    every: int  # steps between two measurements
    iterations: int  # of Lanczos
    samples: int  # for the trace


def trained(batch: tuple[Tensor, Tensor], rate: float, options: Options, jit: Any) -> list[Row]:
    """Train at this learning rate on this batch; print and return the measurements."""
    images, labels = batch
    net, optimizer = funcnets.models.lenet_bn(), optim.sgd(rate)
    train_state = train.create(net, optimizer, random.key(0), images)
    step = jit(train.make_train_step(net, optimizer))

    @jit
    def product(params: Any, state: Any, vector: Any) -> Any:
        def loss(params: Any) -> Tensor:
            logits, _ = net.apply(params, state, images, train=True)
            return losses.cross_entropy(logits, labels)

        return curvature.hessian_product(loss, params, vector)

    rows = []
    for number in range(options.steps + 1):
        after, measured = step(train_state, batch)
        if number % options.every == 0:
            along = partial(product, train_state.params, train_state.state)
            like, key = train_state.params, random.fold_in(random.key(1), number)
            largest = curvature.largest_eigenvalue(along, like, key, iterations=options.iterations)
            trace = curvature.hutchinson_trace(along, like, key, samples=options.samples)
            values = (measured["loss"], largest.value, trace.value, trace.error)
            rows.append(Row(number, *map(float, values)))
            _, loss, sharpness, total, error = rows[-1]
            print(
                f"rate {rate:g}, step {number:3}: loss {loss:.4f}, largest eigenvalue "
                f"{sharpness:.3f}, trace {total:.1f} ± {error:.1f}",
                flush=True,
            )
        train_state = after
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    positive = arguments.positive
    parser.add_argument("--steps", type=positive, default=60)
    parser.add_argument("--every", type=positive, default=6, help="steps between two measurements")
    parser.add_argument("--rates", type=arguments.above_zero, nargs="+", default=[1.0, 0.3])
    parser.add_argument("--iterations", type=positive, default=8, help="of Lanczos")
    parser.add_argument("--samples", type=positive, default=4, help="for the trace, at least 2")
    parser.add_limit(100)
    parser.add_data()
    parser.add_backend()
    parser.add_picture("sharpness.png")
    options = parser.parse(argv)
    if options.samples < 2:
        parser.error("argument --samples: 1; expected 2 or more, for a standard error")
    dataset = parser.load_data(options.data, options.limit_train)
    batch = (data.prepare(dataset.train_images, side=28), dataset.train_labels)
    how = Options(options.steps, options.every, options.iterations, options.samples)
    jit = partial(funcnets.jit, backend=options.backend)
    draw({rate: trained(batch, rate, how, jit) for rate in options.rates}, options.picture)
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
