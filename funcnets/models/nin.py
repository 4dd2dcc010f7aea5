"""NiN: Lin, Chen and Yan, Network in network, 2013."""

from collections.abc import Sequence

from funcnets.core import Layer, sequential
from funcnets.layers import conv2d, dropout, flatten, global_avg_pool, max_pool, relu


def nin_block(channels: int, kernel: int, stride: int = 1, padding: int = 0) -> Layer:
    """Return a convolution and two 1×1 convolutions to `channels`, each followed by ReLU.

    `kernel`, `stride` and `padding` are those of the first convolution.
    """
    return sequential(
        conv1=conv2d(channels, kernel, stride, padding),
        relu1=relu(),
        conv2=conv2d(channels, 1),
        relu2=relu(),
        conv3=conv2d(channels, 1),
        relu3=relu(),
    )


def nin(
    num_classes: int = 10, *, channels: Sequence[int] = (96, 256, 384), rate: float = 0.5
) -> Layer:
    """Return network in network, (N, C, 224, 224) -> (N, num_classes), without a linear layer.

    `channels` are those of the first three blocks, `rate` is the probability of the dropout.
    """
    return sequential(
        block1=nin_block(channels[0], 11, stride=4),
        pool1=max_pool(3, 2),
        block2=nin_block(channels[1], 5, padding=2),
        pool2=max_pool(3, 2),
        block3=nin_block(channels[2], 3, padding=1),
        pool3=max_pool(3, 2),
        dropout=dropout(rate),
        block4=nin_block(num_classes, 3, padding=1),
        pool4=global_avg_pool(),
        flatten=flatten(),
    )
