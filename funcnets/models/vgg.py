"""VGG: Simonyan and Zisserman, Very deep convolutional networks, 2014."""

from collections.abc import Callable, Sequence

from funcnets.core import Layer, sequential
from funcnets.layers import (
    adaptive_avg_pool,
    batch_norm,
    conv2d,
    dropout,
    flatten,
    linear,
    max_pool,
    relu,
)
from funcnets.models._variants import variant

Architecture = Sequence[tuple[int, int]]  # (convolutions, channels) of each block


def vgg_block(convolutions: int, channels: int, *, norm: bool = False) -> Layer:
    """Return 3×3 convolutions to `channels`, each with ReLU, and a max pool that halves H and W.

    `norm` puts a batch norm before each ReLU.
    """
    named: dict[str, Layer] = {}
    for i in range(1, convolutions + 1):
        named[f"conv{i}"] = conv2d(channels, 3, padding=1)
        if norm:
            named[f"bn{i}"] = batch_norm()
        named[f"relu{i}"] = relu()
    return sequential(**named, pool=max_pool(2))


def vgg(
    arch: Architecture,
    num_classes: int = 10,
    *,
    hidden: int = 4096,
    rate: float = 0.5,
    norm: bool = False,
    side: int | None = None,
) -> Layer:
    """Return VGG, (N, C, 224, 224) -> (N, num_classes).

    Args:
        arch: number of convolutions and of channels of each block.
        num_classes: number of logits.
        hidden: features of the two hidden linear layers.
        rate: probability of their dropout.
        norm: True for a batch norm after each convolution.
        side: height and width to which the last feature maps are pooled, so that images of any
            size fit the linear layers; None for no such pooling.
    """
    blocks = {f"block{i}": vgg_block(*block, norm=norm) for i, block in enumerate(arch, 1)}
    average = {} if side is None else {"average": adaptive_avg_pool(side)}
    return sequential(
        **blocks,
        **average,
        flatten=flatten(),
        fc1=linear(hidden),
        relu1=relu(),
        dropout1=dropout(rate),
        fc2=linear(hidden),
        relu2=relu(),
        dropout2=dropout(rate),
        fc3=linear(num_classes),
    )


ARCHITECTURES: dict[str, Architecture] = {
    "vgg11": ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
    "vgg13": ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512)),
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    "vgg19": ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}


def _variant(name: str) -> Callable[..., Layer]:
    doc = f"Return VGG-{name[3:]}, (N, C, H, W) -> (N, num_classes); other arguments as in `vgg`."
    return variant(name, doc, vgg, ARCHITECTURES[name])


vgg11, vgg13, vgg16, vgg19 = map(_variant, ARCHITECTURES)
