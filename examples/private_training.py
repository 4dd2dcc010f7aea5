"""Train a small network with differential privacy (DP-SGD), and draw what the noise costs.

    python examples/private_training.py --noise 0 2 8 32 --picture private.png

The gradient of each example is clipped, and noise is added to their mean (Abadi et al., 2016), so
that no single image moves the network by much.  `--noise` is the noise multiplier: the standard
deviation of the noise relative to the clipping norm.  Prints a table, and draws the test accuracy
for each amount of noise over the epochs.
"""

import argparse
import math
from functools import partial

import arguments
import torch

import funcnets
from funcnets import data, layers, optim, random, train, transforms
from funcnets.core import Layer


def lenet() -> Layer:
    """Return a LeNet for 28×28 images, without batch norm, which would mix the examples."""
    return funcnets.sequential(
        conv1=layers.conv2d(8, 5, stride=2, padding=2),
        tanh1=layers.tanh(),
        conv2=layers.conv2d(16, 5, stride=2),
        tanh2=layers.tanh(),
        flatten=layers.flatten(),
        fc1=layers.linear(32),
        tanh3=layers.tanh(),
        fc2=layers.linear(10),
    )


def accuracies(noise: float, dataset: data.Dataset, options: argparse.Namespace) -> list[float]:
    """Return the test accuracy after each epoch."""
    net, prepare = lenet(), partial(data.prepare, side=28)
    init_key, noise_key = random.split(random.key(options.seed))
    private = optim.private(options.max_norm, noise, options.batch_size, noise_key)
    optimizer = optim.chain(private, optim.sgd(options.learning_rate, momentum=0.9))
    gradient = transforms.per_example(chunk_size=options.chunk_size)
    step = funcnets.jit(
        train.make_train_step(net, optimizer, prepare=prepare, gradient=gradient),
        donate_argnums=0,
        backend=options.backend,
    )
    eval_step = train.make_eval_step(net, prepare=prepare)
    example = torch.empty(1, 1, 28, 28, device="meta")
    train_state = train.create(net, optimizer, init_key, example)
    batch = (dataset.train_images, dataset.train_labels)
    test = (dataset.test_images, dataset.test_labels)
    found = []
    for progress in train.fit(
        step, train_state, batch, batch_size=options.batch_size, epochs=options.epochs
    ):
        if progress.batch == progress.batches:
            after = progress.train_state
            found.append(train.evaluate(eval_step, after.params, after.state, test).accuracy)
    return found


def draw(found: dict[float, list[float]], path: str) -> None:
    """Draw test accuracy by epoch, a curve for each amount of noise."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"]([i / max(len(found) - 1, 1) * 0.9 for i in range(len(found))])
    for (noise, values), colour in zip(found.items(), colours, strict=True):
        axes.plot(range(1, len(values) + 1), values, "o-", color=colour, label=f"{noise:g}")
    axes.set(xlabel="epoch", ylabel="test accuracy", title="What privacy's noise costs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title="noise", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    number, positive = arguments.non_negative, arguments.positive
    parser.add_argument("--noise", nargs="+", type=number, default=[0.0, 2.0, 8.0, 32.0])
    parser.add_argument("--max-norm", type=arguments.above_zero, default=1.0)
    parser.add_argument("--learning-rate", type=number, default=0.1)
    parser.add_argument("--batch-size", type=positive, default=250)
    parser.add_argument("--chunk-size", type=positive, help="gradients at a time; default all")
    parser.add_argument("--epochs", type=positive, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_data()
    parser.add_limit()
    parser.add_backend()
    parser.add_picture(None)
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    if options.batch_size > len(dataset.train_labels):
        parser.error(
            f"argument --batch-size: {options.batch_size}; expected {len(dataset.train_labels)} or "
            "less, the number of images"
        )
    print(dataset.source)
    print(f"{math.ceil(len(dataset.train_labels) / options.batch_size)} steps per epoch")
    print("| noise | test accuracy |\n|---|---|")
    found: dict[float, list[float]] = {}
    for noise in options.noise:
        found[noise] = accuracies(noise, dataset, options)
        print(f"| {noise:g} | {found[noise][-1]:.3f} |", flush=True)
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
