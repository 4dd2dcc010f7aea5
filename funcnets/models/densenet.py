"""DenseNet: Huang et al., Densely connected convolutional networks, 2016."""

from collections.abc import Sequence

from funcnets.core import Layer, dense, sequential
from funcnets.layers import (
    avg_pool,
    batch_norm,
    conv2d,
    flatten,
    global_avg_pool,
    linear,
    max_pool,
    relu,
)


def _dense_layer(growth: int, bottleneck: int | None, bias: bool) -> Layer:
    if bottleneck is None:
        return sequential(
            bn=batch_norm(), relu=relu(), conv=conv2d(growth, 3, padding=1, bias=bias)
        )
    return sequential(
        bn1=batch_norm(),
        relu1=relu(),
        conv1=conv2d(bottleneck * growth, 1, bias=bias),
        bn2=batch_norm(),
        relu2=relu(),
        conv2=conv2d(growth, 3, padding=1, bias=bias),
    )


def dense_block(
    layers: int, growth: int, *, bottleneck: int | None = None, bias: bool = True
) -> Layer:
    """Return `layers` times batch norm, ReLU and a 3×3 convolution that adds `growth` channels.

    With `bottleneck`, each is preceded by batch norm, ReLU and a 1×1 convolution to
    `bottleneck * growth` channels, as in the paper's DenseNet-B, where it is 4.  `bias` is that of
    the convolutions.
    """
    return dense(
        **{f"layer{i}": _dense_layer(growth, bottleneck, bias) for i in range(1, layers + 1)}
    )


def transition_block(channels: int, *, bias: bool = True) -> Layer:
    """Return batch norm, ReLU, a 1×1 convolution to `channels` and a pool that halves H and W.

    `bias` is True if the convolution has one.
    """
    conv = conv2d(channels, 1, bias=bias)
    return sequential(bn=batch_norm(), relu=relu(), conv=conv, pool=avg_pool(2))


def densenet(
    num_classes: int = 10,
    *,
    layers: Sequence[int] = (4, 4, 4, 4),
    growth: int = 32,
    stem_channels: int = 64,
    bottleneck: int | None = None,
    bias: bool = True,
) -> Layer:
    """Return DenseNet, (N, C, 96, 96) -> (N, num_classes).

    Args:
        num_classes: number of logits.
        layers: number of layers in each dense block; transitions between blocks halve the channels.
        growth: channels that each layer adds.
        stem_channels: channels before the first block.
        bottleneck: as in `dense_block`.
        bias: True if convolutions have a bias.
    """
    blocks: dict[str, Layer] = {}
    channels = stem_channels
    for i, depth in enumerate(layers, 1):
        if i > 1:
            channels //= 2
            blocks[f"transition{i - 1}"] = transition_block(channels, bias=bias)
        blocks[f"dense{i}"] = dense_block(depth, growth, bottleneck=bottleneck, bias=bias)
        channels += depth * growth
    return sequential(
        stem=sequential(
            conv=conv2d(stem_channels, 7, stride=2, padding=3, bias=bias),
            bn=batch_norm(),
            relu=relu(),
            pool=max_pool(3, 2, 1),
        ),
        **blocks,
        bn=batch_norm(),
        relu=relu(),
        pool=global_avg_pool(),
        flatten=flatten(),
        fc=linear(num_classes),
    )
