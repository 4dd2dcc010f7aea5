"""torchvision's networks, built from the library's blocks, and its names for their leaves."""

import re
from collections.abc import Sequence
from functools import partial

from funcnets import models
from funcnets.core import Layer, sequential
from funcnets.layers import (
    adaptive_avg_pool,
    batch_norm,
    conv2d,
    dropout,
    flatten,
    global_avg_pool,
    linear,
    max_pool,
    relu,
)
from funcnets.models.googlenet import STAGES

VGG11 = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))


def alexnet(num_classes: int, hidden: int = 4096, rate: float = 0.5) -> Layer:
    """Krizhevsky's second version ("one weird trick"), which has fewer channels."""
    return sequential(
        conv1=conv2d(64, 11, stride=4, padding=2),
        relu1=relu(),
        pool1=max_pool(3, 2),
        conv2=conv2d(192, 5, padding=2),
        relu2=relu(),
        pool2=max_pool(3, 2),
        conv3=conv2d(384, 3, padding=1),
        relu3=relu(),
        conv4=conv2d(256, 3, padding=1),
        relu4=relu(),
        conv5=conv2d(256, 3, padding=1),
        relu5=relu(),
        pool5=max_pool(3, 2),
        average=adaptive_avg_pool(6),
        flatten=flatten(),
        dropout6=dropout(rate),
        fc6=linear(hidden),
        relu6=relu(),
        dropout7=dropout(rate),
        fc7=linear(hidden),
        relu7=relu(),
        fc8=linear(num_classes),
    )


def vgg11(num_classes: int, hidden: int = 4096, rate: float = 0.5, norm: bool = False) -> Layer:
    """`models.vgg11` for images of any size: the pool before the classifier makes them 7×7."""
    blocks = {f"block{i}": models.vgg_block(*row, norm=norm) for i, row in enumerate(VGG11, 1)}
    return sequential(
        **blocks,
        average=adaptive_avg_pool(7),
        flatten=flatten(),
        fc1=linear(hidden),
        relu1=relu(),
        dropout1=dropout(rate),
        fc2=linear(hidden),
        relu2=relu(),
        dropout2=dropout(rate),
        fc3=linear(num_classes),
    )


def googlenet(num_classes: int, rate: float = 0.2) -> Layer:
    """GoogLeNet with batch norm, and with 3×3 kernels where the paper has 5×5."""

    def convolution(channels: int, kernel: int, stride: int = 1, padding: int = 0) -> Layer:
        conv = conv2d(channels, kernel, stride, padding, bias=False)
        return sequential(conv=conv, bn=batch_norm(eps=1e-3))

    def stage(name: str) -> Layer:
        block = partial(models.inception, variant=(3, 3), convolution=convolution)
        return sequential(**{part: block(*row) for part, row in STAGES[name].items()})

    pool = partial(max_pool, stride=2, ceil_mode=True)
    return sequential(
        stem=sequential(
            conv1=convolution(64, 7, stride=2, padding=3),
            relu1=relu(),
            pool1=pool(3),
            conv2=convolution(64, 1),
            relu2=relu(),
            conv3=convolution(192, 3, padding=1),
            relu3=relu(),
            pool3=pool(3),
        ),
        stage3=stage("stage3"),
        pool3=pool(3),
        stage4=stage("stage4"),
        pool4=pool(2),
        stage5=stage("stage5"),
        pool5=global_avg_pool(),
        flatten=flatten(),
        dropout=dropout(rate),
        fc=linear(num_classes),
    )


def resnet(depths: Sequence[int], num_classes: int, bottleneck: bool = False) -> Layer:
    """ResNet whose convolutions have no bias and whose shortcuts have a batch norm."""
    block = models.bottleneck_block if bottleneck else models.residual_block
    block = partial(block, bias=False, norm_shortcut=True)
    return models.resnet(
        depths, num_classes, block=block, stem_bias=False, project_first=bottleneck
    )


densenet121 = partial(models.densenet, layers=(6, 12, 24, 16), bottleneck=4, bias=False)


ALEXNET_NAMES = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


def vgg_names(norm: bool = False) -> dict[str, str]:
    names = {"classifier.0": "fc1", "classifier.3": "fc2", "classifier.6": "fc3"}
    position = 0
    for block, (convolutions, _) in enumerate(VGG11, 1):
        for i in range(1, convolutions + 1):
            names[f"features.{position}"] = f"block{block}.conv{i}"
            if norm:
                names[f"features.{position + 1}"] = f"block{block}.bn{i}"
            position += 3 if norm else 2
        position += 1  # the pool
    return names


def googlenet_name(name: str) -> str:
    name = re.sub(r"^conv\d", r"stem.\g<0>", name)
    name = re.sub(r"^inception(\d)", r"stage\1.\g<0>", name)
    name = re.sub(r"(branch[23])\.0", r"\1.reduce", name)
    name = re.sub(r"(branch[234])\.1", r"\1.conv", name)
    return re.sub(r"(branch1)\.", r"\1.conv.", name)


def resnet_name(name: str) -> str:
    name = re.sub(r"^(conv|bn)1\.", r"stem.\1.", name)
    name = re.sub(r"layer(\d)\.(\d+)", lambda m: f"stage{m[1]}.block{int(m[2]) + 1}", name)
    return name.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.bn")


def densenet_name(name: str) -> str:
    name = name.removeprefix("features.").replace("classifier", "fc")
    name = name.replace("denseblock", "dense").replace("denselayer", "layer")
    name = re.sub(r"^(conv|norm)0\.", r"stem.\1.", name)
    return re.sub(r"norm5?", "bn", name)
