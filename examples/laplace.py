"""Calibrate LeNet's predictions by the Laplace approximation, and draw how sure they are.

    python examples/laplace.py --picture laplace.png

Trained for long on few images, the network is surer than it is right.  Two approximations make up
for it: of the last layer alone with its whole matrix, and of all parameters with the diagonal.
The prior's precision is that of the largest evidence on the training images.  ECE is the expected
calibration error over 15 bins of confidence: Guo et al., On calibration of modern neural networks,
2017.
"""

import argparse
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import funcnets
from funcnets import data, losses, metrics, optim, random, train
from funcnets.core import Layer
from funcnets.train import TrainState
from funcnets.transforms import laplace

PRECISIONS = [10.0 ** (power / 2) for power in range(-4, 9)]
BINS = 15


class Bins(NamedTuple):
    """Predictions sorted by their confidence into bins of one width."""

    share: Tensor  # (BINS,), of all predictions
    confidence: Tensor  # (BINS,), mean
    accuracy: Tensor  # (BINS,)


def bins(probabilities: Tensor, labels: Tensor) -> Bins:
    confidence, predicted = probabilities.max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    counts, sure, right = (
        torch.zeros(BINS).index_add(0, place, value.float())
        for value in (torch.ones_like(confidence), confidence, predicted == labels)
    )
    return Bins(counts / len(labels), sure / counts.clamp(min=1), right / counts.clamp(min=1))


def calibration_error(found: Bins) -> float:
    return float((found.share * (found.confidence - found.accuracy).abs()).sum())


def trained(net: Layer, images: Tensor, labels: Tensor, epochs: int, backend: Any) -> TrainState:
    """The network after SGD at a rate that falls to zero."""
    size = 128
    steps = epochs * -(-len(labels) // size)
    optimizer = optim.sgd(optim.linear(1.0, steps))
    step = funcnets.jit(train.make_train_step(net, optimizer), donate_argnums=0, backend=backend)
    train_state = train.create(net, optimizer, random.key(0), images)
    progress = train.fit(step, train_state, (images, labels), batch_size=size, epochs=epochs)
    return [at.train_state for at in progress][-1]


def calibrated(
    model: laplace.Model,
    params: Any,
    training: list[tuple[Tensor, Tensor]],
    test: list[Tensor],
    structure: laplace.Structure,
) -> tuple[float, Tensor, Tensor]:
    """The prior's precision of the largest evidence, and its predictions by probit and by draws."""
    fitted = laplace.fit(model, params, training, structure=structure)
    evidence = [float(laplace.log_evidence(fitted, precision)) for precision in PRECISIONS]
    precision = PRECISIONS[evidence.index(max(evidence))]
    logits = [laplace.logit_distribution(fitted, model, x, precision) for x in test]
    mean, covariance = (torch.cat(parts) for parts in zip(*logits, strict=True))
    drawn = laplace.monte_carlo(mean, covariance, random.key(1))
    return precision, laplace.probit(mean, covariance), drawn


def draw(found: dict[str, Bins], path: str) -> None:
    """Accuracy against confidence, a panel for each way to predict, and write it to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(found), figsize=(3.1 * len(found), 3.4), sharey=True, layout="constrained"
    )
    for axis, (name, values) in zip(axes, found.items(), strict=True):
        some = values.share > 0
        centers = ((torch.arange(BINS) + 0.5)[some] / BINS).numpy()
        accuracy = values.accuracy[some].numpy()
        gap = values.confidence[some].numpy() - accuracy
        axis.bar(centers, accuracy, 1 / BINS, color="#4c78a8", edgecolor="white", label="accuracy")
        axis.bar(centers, gap, 1 / BINS, bottom=accuracy, color="#e4572e", alpha=0.35, label="gap")
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
        axis.set(title=name, xlabel="confidence", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.text(0.05, 0.9, f"ECE {calibration_error(values):.3f}")
    axes[0].set_ylabel("accuracy")
    axes[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--limit-train", type=int, default=500)
    parser.add_argument("--limit-test", type=int, default=1000)
    parser.add_argument("--data", help="a directory, or `bundled`")
    parser.add_argument("--backend", default="graph")
    parser.add_argument("--picture", default="laplace.png")
    options = parser.parse_args(argv)
    dataset = data.limit(data.load(options.data), options.limit_train)
    prepare = partial(data.prepare, side=28)
    images, labels = prepare(dataset.train_images), dataset.train_labels
    test = prepare(dataset.test_images[: options.limit_test])
    test_labels = dataset.test_labels[: options.limit_test]
    net = funcnets.models.lenet_bn()
    after = trained(net, images, labels, options.epochs, options.backend)
    params, state = after.params, after.state

    def everything(params: Any, x: Tensor) -> Tensor:
        return net.apply(params, state, x)[0]

    def last_layer(head: Any, x: Tensor) -> Tensor:
        return net.apply({**params, "fc3": head}, state, x)[0]

    training = list(zip(images.split(100), labels.split(100), strict=True))
    with torch.no_grad():
        logits = everything(params, test)
        predictions = {"softmax": logits.softmax(1)}
        for name, model, mean, structure in (
            ("last layer, full", last_layer, params["fc3"], "full"),
            ("all, diagonal", everything, params, "diagonal"),
        ):
            precision, by_probit, drawn = calibrated(
                model, mean, training, list(test.split(100)), structure
            )
            print(f"{name}: the prior's precision of the largest evidence is {precision:.3g}")
            predictions |= {f"{name}, probit": by_probit, f"{name}, draws": drawn}
    print("| prediction | accuracy | NLL | ECE |\n|---|---|---|---|")
    found = {name: bins(values, test_labels) for name, values in predictions.items()}
    for name, values in predictions.items():
        loss = losses.cross_entropy(values.log(), test_labels)
        accuracy = metrics.accuracy(values, test_labels)
        print(f"| {name} | {accuracy:.3f} | {loss:.3f} | {calibration_error(found[name]):.3f} |")
    draw({name: found[name] for name in predictions if "draws" not in name}, options.picture)
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
