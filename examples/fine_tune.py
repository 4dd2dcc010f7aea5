"""Give a network trained on eight classes a new head for the other two, the rest frozen.

    python examples/fine_tune.py

LeNet is trained on eight classes and saved.  Its checkpoint is transplanted into a network with
another head, and the head alone is trained on a few images of the other two classes.  For
comparison, a whole network is trained on the same images from scratch.  Each seed draws other
images and another head; the table has mean, minimum and maximum over the seeds.
"""

import math
import tempfile
from pathlib import Path

import arguments
import torch
from torch import Tensor

import funcnets
from funcnets import checkpoint, data, interop, metrics, optim, random, train, transforms, tree
from funcnets.compiler.backends.select import Backend
from funcnets.core import Layer, Params, State
from funcnets.train import TrainState

HEAD = "fc3"
Examples = tuple[Tensor, Tensor]


def of_classes(images: Tensor, labels: Tensor, classes: list[int]) -> Examples:
    """Return the images of these classes, with labels renumbered from 0."""
    numbers = torch.full((10,), -1).scatter(0, torch.tensor(classes), torch.arange(len(classes)))
    chosen = (numbers[labels] >= 0).nonzero()[:, 0]
    return data.prepare(images[chosen], side=28), numbers[labels[chosen]]


def draw(examples: Examples, each: int, key: Tensor) -> Examples:
    """Draw `each` examples of each class."""
    images, labels = examples
    order = random.permutation(key, len(labels))
    of_each = [order[labels[order] == label][:each] for label in torch.unique(labels)]
    chosen = torch.cat(of_each)
    return images[chosen], labels[chosen]


class Trainer:
    """Training of a network by one compiled step."""

    def __init__(self, net: Layer, optimizer: optim.Optimizer, backend: Backend | None) -> None:
        self.net, self.optimizer = net, optimizer
        self.step = funcnets.jit(train.make_train_step(net, optimizer), backend=backend)

    def __call__(
        self, values: tuple[Params, State], key: Tensor, examples: Examples, size: int, epochs: int
    ) -> tuple[Params, State]:
        """Return parameters and state after `epochs` epochs in batches of `size`."""
        params, state = values
        step = torch.zeros((), dtype=torch.int64)
        train_state = TrainState(step, params, state, self.optimizer.init(params), key)
        for progress in train.fit(self.step, train_state, examples, batch_size=size, epochs=epochs):
            train_state = progress.train_state
        return train_state.params, train_state.state


def save_body(
    path: Path, examples: Examples, classes: int, epochs: int, backend: Backend | None
) -> None:
    """Train a whole network on these examples, and save it at `path`."""
    net, size = funcnets.models.lenet_bn(classes), 64
    rate = optim.linear(1.0, epochs * math.ceil(len(examples[1]) / size))
    trainer = Trainer(net, optim.sgd(rate), backend)
    start = net.init(random.key(0), examples[0])
    checkpoint.save(path, trainer(start, random.key(0), examples, size, epochs))


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    positive = arguments.positive
    parser.add_argument(
        "--classes", type=int, choices=range(10), nargs="+", default=[0, 6], help="of the new head"
    )
    parser.add_argument("--few", type=positive, default=10, help="images of each class of the head")
    parser.add_argument("--limit-train", type=positive, default=4000, help="images of the others")
    parser.add_argument("--epochs", type=positive, default=6, help="on the others")
    parser.add_argument("--steps", type=positive, default=100, help="on the few images")
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_data()
    parser.add_backend()
    options = parser.parse(argv)
    classes = options.classes
    if not len(classes) == len(set(classes)) < 10:
        parser.error(f"argument --classes: {classes}; expected each once, and nine at most")
    dataset = parser.load_data(options.data)
    others = [number for number in range(10) if number not in classes]
    pool = of_classes(dataset.train_images, dataset.train_labels, classes)
    test = of_classes(dataset.test_images, dataset.test_labels, classes)
    many, many_labels = of_classes(dataset.train_images, dataset.train_labels, others)
    first = (many[: options.limit_train], many_labels[: options.limit_train])
    net = funcnets.models.lenet_bn(len(classes))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "body"
        save_body(path, first, len(others), options.epochs, options.backend)
        like = funcnets.models.lenet_bn(len(others)).init(random.key(0), first[0])
        source, _ = checkpoint.load(path, like)

    head = optim.partition({f"{HEAD}.*": optim.adam(0.01), "*": optim.frozen()})
    train_head = Trainer(transforms.frozen_statistics(net), head, options.backend)
    train_all = Trainer(net, optim.adam(0.003), options.backend)
    found: dict[str, list[float]] = {"new head": [], "head trained": [], "from scratch": []}
    for seed in range(options.seeds):
        key = random.key(seed)
        few = draw(pool, options.few, key)
        fresh = net.init(key, few[0])
        moved = interop.transplant(source, fresh)
        how = (key, few, len(few[1]), options.steps)
        tuned = train_head((moved.params, moved.state), *how)
        scratch = train_all(fresh, *how)
        for name, values in zip(found, ((moved.params, moved.state), tuned, scratch), strict=True):
            found[name].append(float(metrics.accuracy(net.apply(*values, test[0])[0], test[1])))
    print(f"taken from the checkpoint: {len(moved.taken)} leaves; new: {', '.join(moved.new)}")
    before, after = tree.flatten_named((moved.params, moved.state)), tree.flatten_named(tuned)
    same = all(torch.equal(before[name], after[name]) for name in before if HEAD not in name)
    print(f"frozen leaves unchanged: {same}")
    print(f"classes {classes}, {len(few[1])} images, {options.seeds} seeds:")
    print("| network | test accuracy | minimum to maximum |\n|---|---|---|")
    for name, accuracies in found.items():
        mean = sum(accuracies) / len(accuracies)
        print(f"| {name} | {mean:.3f} | {min(accuracies):.3f} to {max(accuracies):.3f} |")


if __name__ == "__main__":
    main()
