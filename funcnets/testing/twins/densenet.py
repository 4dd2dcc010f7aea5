"""DenseNet as a module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from funcnets.testing.twins.layers import Stem


class DenseLayer(nn.Sequential):
    """Batch norm, ReLU, 3×3 convolution, joined to the input: C channels to C + growth."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` and the output of the layer, joined on channels."""
        new_features = x
        for part in self:
            new_features = part(new_features)
        return torch.cat((x, new_features), dim=1)


class DenseBlock(nn.Sequential):
    """Dense layers, one after another: C channels to C + layers * growth."""

    def __init__(self, in_channels: int, layers: int, growth: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"layer{i + 1}", DenseLayer(in_channels + i * growth, growth))


class TransitionBlock(nn.Sequential):
    """Batch norm, ReLU, 1×1 convolution, average pool: (N, C, H, W) -> (N, channels, H/2, W/2)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv, self.pool = nn.Conv2d(in_channels, channels, 1), nn.AvgPool2d(2, 2)


class DenseNet(nn.Sequential):
    """DenseNet (Huang et al., 2016): (N, in_channels, H, W) -> (N, num_classes).

    Block i has `layers[i - 1]` dense layers; a transition between blocks halves the channels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        stem_channels: int = 64,
        growth: int = 32,
        layers: Sequence[int] = (4, 4, 4, 4),
    ) -> None:
        super().__init__()
        width = stem_channels
        self.stem = Stem(in_channels, width)
        for i, depth in enumerate(layers, 1):
            if i > 1:
                self.add_module(f"transition{i - 1}", TransitionBlock(width, width // 2))
                width //= 2
            self.add_module(f"dense{i}", DenseBlock(width, depth, growth))
            width += depth * growth
        self.bn, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(width, num_classes)
