"""AlexNet: Krizhevsky, Sutskever and Hinton, ImageNet classification with deep networks, 2012."""

from collections.abc import Sequence

from funcnets.core import Layer, sequential
from funcnets.layers import conv2d, dropout, flatten, linear, max_pool, relu


def alexnet(
    num_classes: int = 10,
    *,
    channels: Sequence[int] = (96, 256, 384, 384, 256),
    hidden: int = 4096,
    rate: float = 0.5,
) -> Layer:
    """Return AlexNet, (N, C, 224, 224) -> (N, num_classes).

    `channels` are those of the five convolutions, `hidden` the features of the two hidden linear
    layers, `rate` the probability of their dropout.
    """
    return sequential(
        conv1=conv2d(channels[0], 11, stride=4, padding=1),
        relu1=relu(),
        pool1=max_pool(3, 2),
        conv2=conv2d(channels[1], 5, padding=2),
        relu2=relu(),
        pool2=max_pool(3, 2),
        conv3=conv2d(channels[2], 3, padding=1),
        relu3=relu(),
        conv4=conv2d(channels[3], 3, padding=1),
        relu4=relu(),
        conv5=conv2d(channels[4], 3, padding=1),
        relu5=relu(),
        pool5=max_pool(3, 2),
        flatten=flatten(),
        fc6=linear(hidden),
        relu6=relu(),
        dropout6=dropout(rate),
        fc7=linear(hidden),
        relu7=relu(),
        dropout7=dropout(rate),
        fc8=linear(num_classes),
    )
