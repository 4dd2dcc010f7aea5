"""Give a network trained on eight classes a new head for the other two, the rest frozen.

python examples/fine_tune.py
"""

import arguments
import torch
from torch import Tensor

import funcnets
from funcnets import data, interop, metrics, optim, random, train, transforms, tree

NEW = [0, 6]  # T-shirts and shirts, which are hard to tell apart
OLD = [1, 2, 3, 4, 5, 7, 8, 9]


def of_classes(images: Tensor, labels: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    """Return the images of these classes, with labels renumbered from 0."""
    numbers = torch.full((10,), -1).scatter(0, torch.tensor(classes), torch.arange(len(classes)))
    chosen = (numbers[labels] >= 0).nonzero()[:, 0]
    return data.prepare(images[chosen], side=28), numbers[labels[chosen]]


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--steps", type=arguments.positive, default=100, help="on the few images")
    parser.add_training(epochs=6)
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    many = of_classes(dataset.train_images, dataset.train_labels, OLD)
    few = of_classes(dataset.train_images[:100], dataset.train_labels[:100], NEW)
    test = of_classes(dataset.test_images, dataset.test_labels, NEW)

    def fit(net, optimizer, values, batch, size, epochs):  # type: ignore[no-untyped-def]
        step = funcnets.jit(train.make_train_step(net, optimizer), backend=options.backend)
        start = train.create(net, optimizer, random.key(0), batch[0])
        start = start._replace(params=values[0], state=values[1])
        *_, last = train.fit(step, start, batch, batch_size=size, epochs=epochs)
        return last.train_state.params, last.train_state.state

    old, net = funcnets.models.lenet_bn(len(OLD)), funcnets.models.lenet_bn(len(NEW))
    begun, fresh = old.init(random.key(0), few[0]), net.init(random.key(1), few[0])
    body = fit(old, optim.adam(0.003), begun, many, 64, options.epochs)
    moved = interop.transplant(body, fresh)
    print(f"taken: {len(moved.taken)} leaves; new: {', '.join(moved.new)}")
    head = optim.partition({"fc3.*": optim.adam(0.01), "*": optim.frozen()})
    before, size = (moved.params, moved.state), len(few[1])
    tuned = fit(transforms.frozen_statistics(net), head, before, few, size, options.steps)
    scratch = fit(net, optim.adam(0.003), fresh, few, size, options.steps)
    same = tree.map(torch.equal, before, tuned)
    print(f"leaves that changed: {tree.leaves(same).count(False)}")
    for name, values in {"new head": before, "trained": tuned, "from scratch": scratch}.items():
        logits, _ = net.apply(*values, test[0])
        print(f"{name}: test accuracy {metrics.accuracy(logits, test[1]):.3f}")


if __name__ == "__main__":
    main()
