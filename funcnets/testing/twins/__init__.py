"""Networks and blocks of `funcnets.models` as plain modules, to which the functions must be equal.

An `nn.Sequential` runs its parts in the order in which they are assigned, so each class reads as
its table in the paper.  Parameters have PyTorch's own initial values; to compare, load the same
values into both.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from funcnets.testing.twins.alexnet import AlexNet
from funcnets.testing.twins.densenet import DenseBlock, DenseLayer, DenseNet, TransitionBlock
from funcnets.testing.twins.googlenet import GoogLeNet, GoogLeNetStem, Inception
from funcnets.testing.twins.layers import MaskedDropout, ScratchBatchNorm, Stem
from funcnets.testing.twins.lenet import LeNetBN, LeNetBNScratch
from funcnets.testing.twins.nin import NiN, NiNBlock
from funcnets.testing.twins.resnet import ResidualBlock, ResNet
from funcnets.testing.twins.vgg import VGG, VGGBlock

__all__ = [
    "VGG",
    "AlexNet",
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "GoogLeNet",
    "GoogLeNetStem",
    "Inception",
    "LeNetBN",
    "LeNetBNScratch",
    "MaskedDropout",
    "NiN",
    "NiNBlock",
    "ResNet",
    "ResidualBlock",
    "ScratchBatchNorm",
    "Stem",
    "TransitionBlock",
    "VGGBlock",
    "get",
]

_TWINS: Mapping[str, type[nn.Module]] = {
    "alexnet": AlexNet,
    "vgg11": VGG,
    "nin": NiN,
    "googlenet": GoogLeNet,
    "lenet_bn": LeNetBN,
    "lenet_bn_scratch": LeNetBNScratch,
    "resnet18": ResNet,
    "densenet": DenseNet,
}


def get(name: str, **options: Any) -> nn.Module:
    """Return the twin of the network `name`, built with the `options` of its class.

    Raises ValueError for an unknown name.

    >>> from funcnets.testing import twins
    >>> twins.get("lenet_bn", num_classes=3).fc3
    Linear(in_features=84, out_features=3, bias=True)
    """
    if name not in _TWINS:
        raise ValueError(f"no twin is called {name!r}: expected one of {', '.join(_TWINS)}")
    return _TWINS[name](**options)
