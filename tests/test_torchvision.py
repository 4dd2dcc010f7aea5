"""torchvision's networks from the same blocks: their weights fit, and the numbers are equal."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torchvision
import torchvision_nets as nets
from torch import nn

from funcnets import interop
from funcnets.core import Layer

RESNET18, RESNET34, RESNET50 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Case:
    """One network on both sides; `narrow` is the width of the hidden layers, or None for theirs."""

    module: Callable[..., nn.Module]
    net: Callable[..., Layer]
    rename: interop.Rename
    side: int
    narrow: bool = False


quiet = {"weights": None}
CASES = {
    "alexnet": Case(
        partial(torchvision.models.alexnet, **quiet),
        nets.alexnet,
        nets.ALEXNET_NAMES,
        side=96,
        narrow=True,
    ),
    "vgg11": Case(
        partial(torchvision.models.vgg11, **quiet),
        nets.vgg11,
        nets.vgg_names(),
        side=48,
        narrow=True,
    ),
    "vgg11_bn": Case(
        partial(torchvision.models.vgg11_bn, **quiet),
        partial(nets.vgg11, norm=True),
        nets.vgg_names(norm=True),
        side=64,
        narrow=True,
    ),
    "googlenet": Case(
        partial(
            torchvision.models.googlenet,
            **quiet,
            aux_logits=False,
            transform_input=False,
            init_weights=False,
        ),
        nets.googlenet,
        nets.googlenet_name,
        side=90,
    ),
    "resnet18": Case(
        partial(torchvision.models.resnet18, **quiet),
        partial(nets.resnet, RESNET18),
        nets.resnet_name,
        side=64,
    ),
    "resnet34": Case(
        partial(torchvision.models.resnet34, **quiet),
        partial(nets.resnet, RESNET34),
        nets.resnet_name,
        side=64,
    ),
    "resnet50": Case(
        partial(torchvision.models.resnet50, **quiet),
        partial(nets.resnet, RESNET50, bottleneck=True),
        nets.resnet_name,
        side=64,
    ),
    "densenet121": Case(
        partial(torchvision.models.densenet121, **quiet),
        nets.densenet121,
        nets.densenet_name,
        side=64,
    ),
}
