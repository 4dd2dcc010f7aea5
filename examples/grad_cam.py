"""Show where a network looks: Grad-CAM on test images, for the class that it predicts.

    python examples/grad_cam.py --picture grad_cam.png

The feature maps of a small ResNet's stage are weighted by the mean gradient of the class's logit;
positive values of their sum are places that speak for the class (Selvaraju et al., 2017).
"""

import arguments
import drawing
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import funcnets
from funcnets import Layer, data, metrics, optim, random, train, tree
from funcnets.models import resnet
from funcnets.transforms import capture


def grad_cam(net: Layer, params: dict, state: dict, x: Tensor, path: str) -> Tensor:
    """Return heat maps (N, H, W) in [0, 1], from the feature maps of the part at `path`."""

    def score(shifts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        captured = capture(net, params, state, x, paths=[path], shifts=shifts)
        return captured.output.max(1).values.sum(), captured.activations[path]

    like = capture(net, params, state, x, paths=[path]).activations
    gradients, maps = funcnets.grad(score, has_aux=True)(tree.map(torch.zeros_like, like))
    heat = (gradients[path].mean((2, 3), keepdim=True) * maps).sum(1).relu()
    heat = interpolate(heat[:, None], size=x.shape[2:], mode="bilinear")[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--layer", default="stage1", choices=("stem", "stage1", "stage1.block1"))
    parser.add_training(epochs=5, limit=3000)
    parser.add_picture("grad_cam.png")
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    net, optimizer = resnet((2,), channels=(32,)), optim.adam(0.003)
    batch = (data.prepare(dataset.train_images, side=28), dataset.train_labels)
    train_state = train.create(net, optimizer, random.key(0), batch[0])
    step = funcnets.jit(train.make_train_step(net, optimizer), backend=options.backend)
    for progress in train.fit(step, train_state, batch, batch_size=64, epochs=options.epochs):
        train_state = progress.train_state
    params, state = train_state.params, train_state.state
    images, labels = data.prepare(dataset.test_images[:200], side=28), dataset.test_labels[:200]
    logits, _ = net.apply(params, state, images)
    print(f"accuracy on {len(labels)} test images: {metrics.accuracy(logits, labels):.3f}")
    first = [int((labels == number).nonzero()[0, 0]) for number in range(10)]  # one of each class
    heat = grad_cam(net, params, state, images[first], options.layer)
    names = [dataset.class_names[guess] for guess in logits[first].argmax(1)]
    drawing.draw_heat_maps(images[first, 0], heat, names, options.picture)


if __name__ == "__main__":
    main()
