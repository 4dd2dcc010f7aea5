"""LeNet with batch norm.

LeCun et al., Gradient-based learning applied to document recognition, 1998; Ioffe and Szegedy,
Batch Normalization, 2015.
"""

from functools import partial

from funcnets.core import Layer, sequential
from funcnets.layers import avg_pool, batch_norm, conv2d, flatten, linear, sigmoid
from funcnets.models._variants import variant


def lenet_bn(
    num_classes: int = 10,
    *,
    channels: tuple[int, int] = (6, 16),
    hidden: tuple[int, int] = (120, 84),
    unbiased: bool = True,
) -> Layer:
    """Return LeNet with batch norm after each layer, (N, C, 28, 28) -> (N, num_classes).

    `channels` are those of the two convolutions, `hidden` the features of the two hidden linear
    layers; `unbiased` is that of `layers.batch_norm`.
    """
    norm = partial(batch_norm, unbiased=unbiased)
    return sequential(
        conv1=conv2d(channels[0], 5),
        bn1=norm(),
        sigmoid1=sigmoid(),
        pool1=avg_pool(2),
        conv2=conv2d(channels[1], 5),
        bn2=norm(),
        sigmoid2=sigmoid(),
        pool2=avg_pool(2),
        flatten=flatten(),
        fc1=linear(hidden[0]),
        bn3=norm(),
        sigmoid3=sigmoid(),
        fc2=linear(hidden[1]),
        bn4=norm(),
        sigmoid4=sigmoid(),
        fc3=linear(num_classes),
    )


lenet_bn_scratch = variant(
    "lenet_bn_scratch",
    "Return LeNet with biased running variances; arguments as in `lenet_bn`.",
    lenet_bn,
    unbiased=False,
)
