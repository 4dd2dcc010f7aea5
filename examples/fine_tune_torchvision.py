"""Give torchvision's ResNet-18, trained on ImageNet or not, a head for the ten kinds of clothes.

    python examples/fine_tune_torchvision.py --weights resnet18-f37072fd.pth

A state dict of torchvision becomes parameters and state by renaming; the logits are compared with
torchvision's own.  Then the body is transplanted into a network with another head, and the head
alone is trained, on a few grey images repeated to three channels.  Without `--weights` the body is
torchvision's random one: that shows the steps, but not the use of training on ImageNet.
"""

import pickle
from pathlib import Path

import arguments
import torch
from torch import Tensor

import funcnets
from funcnets import data, interop, metrics, models, optim, random, train, transforms, tree
from funcnets.compiler.backends.select import Backend
from funcnets.core import Layer, Params, State
from funcnets.train import Batch, TrainState

HEAD = "fc"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


def prepare(images: Tensor, side: int) -> Tensor:
    """Convert grey uint8 images (N, 1, H, W) to normalised colour images (N, 3, side, side)."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (data.prepare(images, side=side).expand(-1, 3, -1, -1) - mean) / deviation


def draw(batch: Batch, each: int, key: Tensor) -> Batch:
    """Draw `each` examples of each class."""
    images, labels = batch
    order = random.permutation(key, len(labels))
    chosen = torch.cat([order[labels[order] == label][:each] for label in torch.unique(labels)])
    return images[chosen], labels[chosen]


def convert(weights: Path | None, x: Tensor) -> tuple[Params, State]:
    """Return parameters and state of torchvision's network, compared with it on `x`."""
    import torchvision  # type: ignore[import-untyped]

    module = torchvision.models.resnet18(weights=None).eval()
    if weights is None:
        print("no --weights: the body is torchvision's random one, trained on nothing")
    else:
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    whole, rename = models.torchvision.get("resnet18")
    like = whole.init(random.key(0, "meta"), x.to("meta"))
    params, state = interop.from_state_dict(module.state_dict(), like=like, rename=rename)
    with torch.no_grad():
        expected, actual = module(x), whole.apply(params, state, x)[0]
    difference = float((actual - expected).abs().max() / expected.abs().max())
    print(f"logits differ from torchvision's by at most {difference:.1e} of the largest")
    return params, state


def train_head(
    net: Layer, start: tuple[Params, State], batch: Batch, steps: int, backend: Backend | None
) -> tuple[Params, State]:
    """Return parameters and state after `steps` steps on one batch; all but the head is frozen."""
    params, state = start
    optimizer = optim.partition({f"{HEAD}.*": optim.adam(0.01), "*": optim.frozen()})
    frozen = transforms.frozen_statistics(net)
    step = funcnets.jit(train.make_train_step(frozen, optimizer), backend=backend)
    zero = torch.zeros((), dtype=torch.int64)
    train_state = TrainState(zero, params, state, optimizer.init(params), random.key(0))
    for _ in range(steps):
        train_state, _ = step(train_state, batch)
    return train_state.params, train_state.state


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    positive = arguments.positive
    parser.add_argument(
        "--weights", type=arguments.existing_file, help="a state dict of torchvision's resnet18"
    )
    parser.add_argument("--few", type=positive, default=10, help="images of each class of the head")
    parser.add_argument("--side", type=positive, default=64)
    parser.add_argument("--steps", type=positive, default=30)
    parser.add_argument("--limit-test", type=positive, default=500)
    parser.add_data()
    parser.add_backend()
    options = parser.parse(argv)
    dataset = parser.load_data(options.data)
    few, labels = draw((dataset.train_images, dataset.train_labels), options.few, random.key(0))
    batch = (prepare(few, options.side), labels)
    try:
        source = convert(options.weights, batch[0][:8])
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        parser.error(f"argument --weights: not weights of torchvision's resnet18: {error}")

    net, _ = models.torchvision.get("resnet18", num_classes=10)
    moved = interop.transplant(source, net.init(random.key(0), batch[0]))
    print(f"taken from torchvision: {len(moved.taken)} leaves; new: {', '.join(moved.new)}")
    before = (moved.params, moved.state)
    after = train_head(net, before, batch, options.steps, options.backend)
    pairs = zip(*(tree.flatten_named(values).items() for values in (before, after)), strict=True)
    same = all(torch.equal(a, b) for (name, a), (_, b) in pairs if f".{HEAD}." not in name)
    print(f"frozen leaves unchanged: {same}")

    tested = (dataset.test_images[: options.limit_test], dataset.test_labels[: options.limit_test])
    test = (prepare(tested[0], options.side), tested[1])
    print(f"{len(labels)} images to train on, {len(test[1])} to test, side {options.side}:")
    print("| head | training accuracy | test accuracy |\n|---|---|---|")
    for name, (params, state) in {"new": before, f"after {options.steps} steps": after}.items():
        cells = [
            float(metrics.accuracy(net.apply(params, state, x)[0], y)) for x, y in (batch, test)
        ]
        print(f"| {name} | {cells[0]:.3f} | {cells[1]:.3f} |")


if __name__ == "__main__":
    main()
