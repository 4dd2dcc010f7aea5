"""The eight networks in all sizes, as layers and as modules."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from funcnets import models, tree
from funcnets.core import Layer
from funcnets.models.googlenet import STAGES
from funcnets.testing import twins


class Network(NamedTuple):
    """One of the eight networks, with widths and depths, and an input's shape.

    Attributes:
        name: its name in `models.INDEX`.
        options: arguments of its constructor.
        shape: shape of an input.
    """

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]

    def module(self) -> nn.Module:
        """Return its twin."""
        has_linear_after_flatten = self.name.startswith(("alexnet", "vgg", "lenet"))
        side = {"side": self.shape[2]} if has_linear_after_flatten else {}
        options = {"in_channels": self.shape[1], **self.options, **side}
        return twins.get(self.name, **options)

    def layer(self) -> Layer:
        """Return the functional network."""
        special: dict[str, Callable[..., Layer]] = {
            "vgg11": models.vgg,
            "resnet18": models.resnet,
            "googlenet": _googlenet,
        }
        build: Callable[..., Layer] = models.INDEX[self.name].build
        return special.get(self.name, build)(**self.options) if self.options else build()


def _googlenet(divisor: int = 1, depths: tuple[int, int, int] = (2, 5, 2), **options: Any) -> Layer:
    """Return GoogLeNet with every width divided and shorter stages, as its twin does it."""
    pairs = zip(STAGES.items(), depths, strict=True)
    kept = {name: dict([*blocks.items()][:depth]) for (name, blocks), depth in pairs}
    stem, stages = tree.map(lambda width: width // divisor, ((64, 64, 192), kept))
    return models.googlenet(stem=stem, stages=stages, **options)
