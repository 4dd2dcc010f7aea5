"""Networks in torchvision's form, and the names of their leaves there: published weights fit.

torchvision itself isn't needed.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets.core import Layer, Params, State, sequential
from funcnets.layers import batch_norm, conv2d, max_pool
from funcnets.models.densenet import densenet
from funcnets.models.googlenet import googlenet
from funcnets.models.resnet import bottleneck_block, residual_block, resnet
from funcnets.models.vgg import ARCHITECTURES, vgg

Rename = Callable[[str], str | None]
"""Function from a name in torchvision's state dict to ours; None for an entry without a place."""


class Form(NamedTuple):
    """A network of torchvision.

    Attributes:
        build: function from `num_classes` and options to the network.
        rename: names of its leaves.
    """

    build: Callable[..., Layer]
    rename: Rename


def get(name: str, num_classes: int = 1000, **options: object) -> tuple[Layer, Rename]:
    """Return the network `torchvision.models.NAME` and the names for `interop.from_state_dict`.

    The names are those of `FORMS`: VGG (with batch norm as `vgg16_bn`), ResNet, DenseNet-121 and
    GoogLeNet, which takes `transform_input=True` for the published weights, and of which the
    auxiliary classifiers are left out.

    Raises ValueError for another name.

        net, rename = models.torchvision.get("resnet18")
        like = net.init(random.key(0), x)
        weights = torch.load("resnet18-f37072fd.pth", weights_only=True)
        params, state = interop.from_state_dict(weights, like=like, rename=rename)

    >>> from funcnets import models
    >>> net, rename = models.torchvision.get("resnet18", num_classes=10)
    >>> rename("layer2.0.downsample.0.weight")
    'stage2.block1.shortcut.conv.weight'
    """
    if name not in FORMS:
        raise ValueError(f"no network of torchvision is called {name!r}: known are {[*FORMS]}")
    form = FORMS[name]
    return form.build(num_classes=num_classes, **options), form.rename


def _resnet(*depths: int, bottleneck: bool = False) -> Form:
    block = bottleneck_block if bottleneck else residual_block
    block = partial(block, bias=False, norm_shortcut=True)
    build = partial(resnet, depths, block=block, stem_bias=False, project_first=bottleneck)
    return Form(build, _resnet_name)


def _resnet_name(name: str) -> str:
    name = re.sub(r"^(conv|bn)1\.", r"stem.\1.", name)
    name = re.sub(r"layer(\d)\.(\d+)", lambda m: f"stage{m[1]}.block{int(m[2]) + 1}", name)
    return name.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.bn")


def _vgg(name: str, *, norm: bool) -> Form:
    names = {"classifier.0": "fc1", "classifier.3": "fc2", "classifier.6": "fc3"}
    position = 0
    for block, (convolutions, _) in enumerate(ARCHITECTURES[name], 1):
        for i in range(1, convolutions + 1):
            names[f"features.{position}"] = f"block{block}.conv{i}"
            if norm:
                names[f"features.{position + 1}"] = f"block{block}.bn{i}"
            position += 3 if norm else 2
        position += 1  # the pool

    def rename(name: str) -> str:
        part, _, leaf = name.rpartition(".")
        return f"{names.get(part, part)}.{leaf}"

    return Form(partial(vgg, ARCHITECTURES[name], norm=norm, side=7), rename)


def _densenet_name(name: str) -> str:
    name = re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", name)  # as in published files
    name = name.removeprefix("features.").replace("classifier", "fc")
    name = name.replace("denseblock", "dense").replace("denselayer", "layer")
    name = re.sub(r"^(conv|norm)0\.", r"stem.\1.", name)
    return re.sub(r"norm5?", "bn", name)


def _googlenet(num_classes: int, *, rate: float = 0.2, transform_input: bool = False) -> Layer:
    """Return GoogLeNet with batch norm, and with 3×3 kernels where the paper has 5×5."""

    def convolution(channels: int, kernel: int, stride: int = 1, padding: int = 0) -> Layer:
        conv = conv2d(channels, kernel, stride, padding, bias=False)
        return sequential(conv=conv, bn=batch_norm(eps=1e-3))

    pool = partial(max_pool, stride=2, ceil_mode=True)
    net = googlenet(num_classes, variant=(3, 3), convolution=convolution, pool=pool, rate=rate)
    return sequential(_halves(), net) if transform_input else net


def _halves() -> Layer:
    """Return the layer that turns images normalised as ImageNet's into (x - 1/2) / (1/2)."""
    channels = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))  # mean and standard deviation

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        parts = [
            x[:, i : i + 1] * (std / 0.5) + (mean - 0.5) / 0.5
            for i, (mean, std) in enumerate(channels)
        ]
        return torch.cat(parts, 1), {}

    return Layer("transform_input()", lambda key, x: ({}, {}), apply)


def _googlenet_name(name: str) -> str | None:
    if name.startswith("aux"):
        return None
    name = re.sub(r"^conv\d", r"stem.\g<0>", name)
    name = re.sub(r"^inception(\d)", r"stage\1.\g<0>", name)
    name = re.sub(r"(branch[23])\.0", r"\1.reduce", name)
    name = re.sub(r"(branch[234])\.1", r"\1.conv", name)
    return re.sub(r"(branch1)\.", r"\1.conv.", name)


FORMS: dict[str, Form] = {
    **{name: _vgg(name, norm=False) for name in ARCHITECTURES},
    **{f"{name}_bn": _vgg(name, norm=True) for name in ARCHITECTURES},
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "resnet101": _resnet(3, 4, 23, 3, bottleneck=True),
    "resnet152": _resnet(3, 8, 36, 3, bottleneck=True),
    "densenet121": Form(
        partial(densenet, layers=(6, 12, 24, 16), bottleneck=4, bias=False), _densenet_name
    ),
    "googlenet": Form(_googlenet, _googlenet_name),
}
