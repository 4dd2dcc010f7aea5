"""Show where a network looks: Grad-CAM on test images, for the class that it predicts.

    python examples/grad_cam.py --picture grad_cam.png

The feature maps of a stage of a small ResNet are weighted by the mean gradient of the class's logit
with respect to them; positive values of their sum are places that speak for the class.  The maps
are 7×7, so each value stands for several pixels.  Selvaraju et al., "Grad-CAM: visual explanations
from deep networks via gradient-based localization", 2017.
"""

import math
from functools import partial

import arguments
import torch
from einops import reduce
from torch import Tensor
from torch.nn.functional import interpolate

import funcnets
from funcnets import data, metrics, optim, random, train, tree
from funcnets.core import Layer, Params, State
from funcnets.models.resnet import resnet
from funcnets.transforms import capture

CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)


def grad_cam(net: Layer, params: Params, state: State, x: Tensor, path: str) -> Tensor:
    """Return heat maps (N, H, W) in [0, 1], from the feature maps of the part at `path`."""

    def score(shifts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        captured = capture(net, params, state, x, paths=[path], shifts=shifts)
        return captured.output.max(1).values.sum(), captured.activations[path]

    like = capture(net, params, state, x, paths=[path]).activations
    gradients, maps = torch.func.grad(score, has_aux=True)(tree.map(torch.zeros_like, like))
    weights = reduce(gradients[path], "n c h w -> n c 1 1", "mean")
    heat: Tensor = reduce(weights * maps, "n c h w -> n h w", "sum").relu()
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


def draw(images: Tensor, heat: Tensor, titles: list[str], path: str) -> None:
    """Draw each image, and below it the image with its heat map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * len(images), 2.9), layout="constrained")
    axes = figure.subplots(2, len(images))
    large = interpolate(heat[:, None], size=images.shape[2:], mode="bilinear")[:, 0]
    for column, title in enumerate(titles):
        for axis in axes[:, column]:
            axis.imshow(images[column, 0].numpy(), cmap="gray_r")
            axis.set_axis_off()
        shown = large[column].numpy()
        axes[1, column].imshow(shown, cmap="autumn_r", alpha=0.8 * shown, vmin=0, vmax=1)
        axes[0, column].set_title(title, fontsize=8)
    figure.savefig(path, dpi=150)


def check_layer(parser: arguments.Parser, net: Layer, path: str) -> None:
    """End the example unless the part at `path` gives feature maps."""
    x = torch.empty(1, 1, 28, 28, device="meta")
    params, state = net.init(random.key(0, "meta"), x)
    try:
        found = capture(net, params, state, x, paths=[path]).activations
    except ValueError as error:
        parser.error(f"argument --layer: {error}")
    if [*found] != [path] or found[path].ndim != 4:
        parser.error(f"argument --layer: {path!r}; expected one part with feature maps")


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--epochs", type=arguments.positive, default=5)
    parser.add_limit(3000)
    parser.add_argument("--layer", default="stage1", help="path of the part with the feature maps")
    parser.add_data(default=None)
    parser.add_backend()
    parser.add_picture("grad_cam.png")
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    net = resnet((2,), channels=(32,))
    prepare = partial(data.prepare, side=28)
    check_layer(parser, net, options.layer)
    steps = options.epochs * math.ceil(len(dataset.train_labels) / 64)
    optimizer = optim.sgd(optim.linear(0.1, steps))
    step = train.make_train_step(net, optimizer, prepare=prepare)
    step = funcnets.jit(step, donate_argnums=0, backend=options.backend)
    train_state = train.create(net, optimizer, random.key(0), prepare(dataset.train_images[:1]))
    batch = (dataset.train_images, dataset.train_labels)
    for progress in train.fit(step, train_state, batch, batch_size=64, epochs=options.epochs):
        train_state = progress.train_state
    params, state = train_state.params, train_state.state
    images, labels = prepare(dataset.test_images[:500]), dataset.test_labels[:500]
    logits, _ = net.apply(params, state, images)
    print(f"accuracy on {len(labels)} test images: {metrics.accuracy(logits, labels):.3f}")
    first = [int((labels == number).nonzero()[0, 0]) for number in range(10)]
    heat = grad_cam(net, params, state, images[first], options.layer)
    predicted = logits[first].argmax(1).tolist()
    titles = [
        CLASSES[guess] if guess == number else f"{CLASSES[number]}\n(says {CLASSES[guess]})"
        for number, guess in enumerate(predicted)
    ]
    draw(images[first], heat, titles, options.picture)
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
