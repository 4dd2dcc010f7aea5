"""Calibrate LeNet's predictions by the Laplace approximation, and draw their reliability.

    python examples/laplace.py --picture laplace.png

Trained for long on few images, the network is overconfident.  Two approximations lower its NLL and
ECE: of the last layer with the full matrix, and of all parameters with the diagonal.  The prior's
precision is the one with the least NLL on held-out images, which are in neither training nor test
set.  The one with the largest evidence is printed beside it; for the diagonal it is far too small:
don't choose by evidence there.  ECE is the expected calibration error over ten bins of confidence:
Guo et al., "On calibration of modern neural networks", 2017.
"""

from typing import Any, NamedTuple

import arguments
import torch
from torch import Tensor

import funcnets
from funcnets import data, losses, metrics, optim, random, train
from funcnets.core import Layer
from funcnets.train import TrainState
from funcnets.transforms import laplace

PRECISIONS = [10.0 ** (power / 2) for power in range(-2, 12)]
BINS = 10
Examples = tuple[Tensor, Tensor]


class Bins(NamedTuple):
    """Predictions grouped by their confidence, into bins of the same width."""

    share: Tensor  # (BINS,), of all predictions
    confidence: Tensor  # (BINS,), mean
    accuracy: Tensor  # (BINS,)


def bins(probabilities: Tensor, labels: Tensor) -> Bins:
    """Return the bins of class probabilities (N, K)."""
    confidence, predicted = probabilities.max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    counts, sure, right = (
        torch.zeros(BINS).index_add(0, place, value.float())
        for value in (torch.ones_like(confidence), confidence, predicted == labels)
    )
    return Bins(counts / len(labels), sure / counts.clamp(min=1), right / counts.clamp(min=1))


def calibration_error(found: Bins) -> float:
    """Return the expected calibration error."""
    return float((found.share * (found.confidence - found.accuracy).abs()).sum())


def trained(net: Layer, examples: Examples, epochs: int, backend: Any) -> TrainState:
    """Return the network trained by Adam, without decay of learning rate or weights."""
    optimizer = optim.adam(0.003)
    step = funcnets.jit(train.make_train_step(net, optimizer), donate_argnums=0, backend=backend)
    train_state = train.create(net, optimizer, random.key(0), examples[0])
    for progress in train.fit(step, train_state, examples, batch_size=125, epochs=epochs):
        train_state = progress.train_state
    return train_state


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of the labels."""
    return float(losses.cross_entropy(probabilities.log(), labels))


class Prediction(NamedTuple):
    """Class probabilities of the test images, and the prior's precision."""

    precision: float  # of the least NLL on held-out images
    by_evidence: float  # of the largest evidence
    probit: Tensor  # (N, K)
    drawn: Tensor  # (N, K), by samples


def calibrated(
    model: laplace.Model,
    params: Any,
    training: Examples,
    held_out: Examples,
    test: Tensor,
    structure: laplace.Structure,
) -> Prediction:
    """Fit the approximation, choose the prior's precision, and predict the test images."""
    batches = zip(*(torch.split(part, 100) for part in training), strict=True)
    fitted = laplace.fit(model, params, batches, structure=structure)

    def logits(x: Tensor, precision: float) -> tuple[Tensor, Tensor]:
        parts = [
            laplace.logit_distribution(fitted, model, p, precision) for p in torch.split(x, 100)
        ]
        mean, covariance = (torch.cat(column) for column in zip(*parts, strict=True))
        return mean, covariance

    def held_out_nll(precision: float) -> float:
        return nll(laplace.probit(*logits(held_out[0], precision)), held_out[1])

    precision = min(PRECISIONS, key=held_out_nll)
    by_evidence = max(PRECISIONS, key=lambda each: float(laplace.log_evidence(fitted, each)))
    mean, covariance = logits(test, precision)
    drawn = laplace.monte_carlo(mean, covariance, random.key(1))
    return Prediction(precision, by_evidence, laplace.probit(mean, covariance), drawn)


def draw(found: dict[str, Bins], path: str) -> None:
    """Draw accuracy by confidence, a reliability diagram for each kind of prediction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(found), 4), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True)
    for axis, (name, values) in zip(axes, found.items(), strict=True):
        some = values.share > 0
        centers = ((torch.arange(BINS) + 0.5)[some] / BINS).numpy()
        accuracy, confidence = (v[some].numpy() for v in (values.accuracy, values.confidence))
        axis.bar(centers, accuracy, 0.9 / BINS, color="#4c78a8", label="accuracy")
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="calibrated")
        axis.plot(
            confidence, accuracy, color="#e4572e", marker="o", markersize=4, linewidth=1,
            label="accuracy at the bin's mean confidence",
        )  # fmt: skip
        axis.set(title=name, xlabel="confidence", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.text(0.05, 0.92, f"ECE {calibration_error(values):.3f}")
    axes[0].set_ylabel("accuracy")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    positive = arguments.positive
    parser.add_argument("--epochs", type=positive, default=100)
    parser.add_argument("--limit-train", type=positive, default=500, help="training images")
    parser.add_argument("--held-out", type=positive, default=300, help="to choose the prior by")
    parser.add_argument("--limit-test", type=positive, default=1000)
    parser.add_data()
    parser.add_backend()
    parser.add_picture("laplace.png")
    options = parser.parse(argv)
    dataset = parser.load_data(options.data)
    if options.limit_train + options.held_out > len(dataset.train_labels):
        parser.error(f"--limit-train and --held-out: there are {len(dataset.train_labels)} images")
    images, labels = dataset.train_images, dataset.train_labels
    train_on, choose_by = (
        (data.prepare(images[part], side=28), labels[part])
        for part in (
            slice(options.limit_train),
            slice(options.limit_train, options.limit_train + options.held_out),
        )
    )
    test = data.prepare(dataset.test_images[: options.limit_test], side=28)
    test_labels = dataset.test_labels[: options.limit_test]
    net = funcnets.models.lenet_bn()
    after = trained(net, train_on, options.epochs, options.backend)
    params, state = after.params, after.state

    def everything(params: Any, x: Tensor) -> Tensor:
        return net.apply(params, state, x)[0]

    def last_layer(head: Any, x: Tensor) -> Tensor:
        return everything({**params, "fc3": head}, x)

    predictions = {"softmax": everything(params, test).softmax(1)}
    ways: list[tuple[str, laplace.Model, Any, laplace.Structure]] = [
        ("last layer, full", last_layer, params["fc3"], "full"),
        ("all, diagonal", everything, params, "diagonal"),
    ]
    for name, model, mean, structure in ways:
        made = calibrated(model, mean, train_on, choose_by, test, structure)
        print(
            f"{name}: the prior's precision is {made.precision:.3g} by held-out images; it would "
            f"be {made.by_evidence:.3g} by evidence"
        )
        predictions |= {f"{name}, probit": made.probit, f"{name}, draws": made.drawn}
    print("| prediction | accuracy | NLL | ECE |\n|---|---|---|---|")
    found = {name: bins(values, test_labels) for name, values in predictions.items()}
    for name, values in predictions.items():
        accuracy, loss = metrics.accuracy(values, test_labels), nll(values, test_labels)
        print(f"| {name} | {accuracy:.3f} | {loss:.3f} | {calibration_error(found[name]):.3f} |")
    draw({name: found[name] for name in predictions if "draws" not in name}, options.picture)
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
