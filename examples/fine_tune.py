"""Move a network trained on eight classes to a head for the other two, the rest frozen.

    python examples/fine_tune.py

LeNet is trained on eight classes and saved; its checkpoint is loaded and transplanted into a
network with another head, and the head alone is trained on a few images of classes that the body
has never seen.  For comparison a whole network is trained on the same few images from scratch.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcnets
from funcnets import checkpoint, data, interop, losses, metrics, optim, random, train, tree
from funcnets.core import Params, State

HEAD = "fc3"
Examples = tuple[Tensor, Tensor]


def of_classes(images: Tensor, labels: Tensor, classes: list[int], most: int) -> Examples:
    """The first `most` images of these classes, which are numbered anew from 0."""
    numbers = torch.full((10,), -1).scatter(0, torch.tensor(classes), torch.arange(len(classes)))
    chosen = (numbers[labels] >= 0).nonzero()[:most, 0]
    return data.prepare(images[chosen], side=28), numbers[labels[chosen]]


def train_all(examples: Examples, classes: int, epochs: int, backend: Any) -> tuple[Params, State]:
    """A new network for so many classes, all of it trained."""
    net = funcnets.models.lenet_bn(classes)
    optimizer = optim.sgd(optim.linear(1.0, epochs * math.ceil(len(examples[1]) / 64)))
    train_state = train.create(net, optimizer, random.key(0), examples[0])
    step = funcnets.jit(train.make_train_step(net, optimizer), backend=backend)
    for progress in train.fit(step, train_state, examples, batch_size=64, epochs=epochs):
        train_state = progress.train_state
    return train_state.params, train_state.state


def train_head(
    params: Params, state: State, examples: Examples, steps: int, backend: Any
) -> Params:
    """The parameters after Adam on the head's alone, the network in evaluation."""
    images, labels = examples
    net = funcnets.models.lenet_bn(len(params[HEAD]["bias"]))
    optimizer = optim.adam(0.03)

    @partial(funcnets.jit, backend=backend)
    def step(head: Params, opt_state: Any, frozen: Params) -> tuple[Params, Any]:
        def loss(head: Params) -> Tensor:
            return losses.cross_entropy(net.apply({**frozen, HEAD: head}, state, images)[0], labels)

        updates, opt_state = optimizer.update(torch.func.grad(loss)(head), opt_state, head)
        return optim.apply_updates(head, updates), opt_state

    head, opt_state = params[HEAD], optimizer.init(params[HEAD])
    # Without the head: jit takes a tensor that is given twice for one.
    body = {name: part for name, part in params.items() if name != HEAD}
    for _ in range(steps):
        head, opt_state = step(head, opt_state, body)
    return {**params, HEAD: head}


def accuracy(params: Params, state: State, examples: Examples) -> float:
    net = funcnets.models.lenet_bn(len(params[HEAD]["bias"]))
    return float(metrics.accuracy(net.apply(params, state, examples[0])[0], examples[1]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4], help="of the new head")
    parser.add_argument("--few", type=int, default=40, help="images to train the head on")
    parser.add_argument("--limit-train", type=int, default=2000, help="images of the first eight")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200, help="of the head")
    parser.add_argument("--data", help="a directory, or `bundled`")
    parser.add_argument("--backend", default="graph")
    options = parser.parse_args(argv)
    dataset = data.load(options.data)
    pick: Callable[..., Examples] = partial(of_classes, dataset.train_images, dataset.train_labels)
    others = [number for number in range(10) if number not in options.classes]
    few = pick(options.classes, options.few)
    test = of_classes(dataset.test_images, dataset.test_labels, options.classes, 2000)
    with tempfile.TemporaryDirectory() as directory:
        trained = train_all(
            pick(others, options.limit_train), len(others), options.epochs, options.backend
        )
        path = checkpoint.save(Path(directory) / "body", trained)
        like = funcnets.models.lenet_bn(len(others)).init(random.key(0), few[0])
        source, _ = checkpoint.load(path, like)
    fresh = funcnets.models.lenet_bn(len(options.classes)).init(random.key(1), few[0])
    moved = interop.transplant(source, fresh)
    print(f"taken from the checkpoint: {len(moved.taken)} leaves; new: {', '.join(moved.new)}")
    tuned = train_head(moved.params, moved.state, few, options.steps, options.backend)
    scratch = train_all(few, len(options.classes), options.steps, options.backend)
    frozen = [name for name in tree.names(tuned) if not name.startswith(HEAD)]
    before, after = tree.flatten_named(moved.params), tree.flatten_named(tuned)
    same = all(torch.equal(before[name], after[name]) for name in frozen)
    print(f"frozen leaves unchanged: {same}")
    print("| network | trained on | test accuracy |\n|---|---|---|")
    images = f"{len(few[1])} images"
    for name, seen, params, state in (
        ("transplanted, new head", "nothing", moved.params, moved.state),
        ("transplanted, head trained", images, tuned, moved.state),
        ("from scratch", images, *scratch),
    ):
        print(f"| {name} | {seen} | {accuracy(params, state, test):.3f} |")


if __name__ == "__main__":
    main()
