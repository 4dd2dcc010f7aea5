"""VGG as a module."""

from collections.abc import Sequence

from torch import nn

from funcnets.testing.twins.layers import MaskedDropout, flat_features


class VGGBlock(nn.Sequential):
    """`convs` 3×3 convolutions with ReLU, then max pooling, which halves H and W."""

    def __init__(self, in_channels: int, convs: int, channels: int) -> None:
        super().__init__()
        for i in range(1, convs + 1):
            width = in_channels if i == 1 else channels
            self.add_module(f"conv{i}", nn.Conv2d(width, channels, 3, padding=1))
            self.add_module(f"relu{i}", nn.ReLU())
        self.pool = nn.MaxPool2d(2, 2)


class VGG(nn.Sequential):
    """VGG (Simonyan & Zisserman, 2014): (N, in_channels, side, side) -> (N, num_classes).

    `arch` lists its blocks as (convs, channels); the default is VGG-11.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        arch: Sequence[tuple[int, int]] = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
        hidden: int = 4096,
        side: int = 224,
    ) -> None:
        super().__init__()
        width = in_channels
        for i, (convs, channels) in enumerate(arch, 1):
            self.add_module(f"block{i}", VGGBlock(width, convs, channels))
            width = channels
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(flat_features(self, in_channels, side), hidden)
        self.relu1, self.dropout1 = nn.ReLU(), MaskedDropout(0.5)
        self.fc2, self.relu2 = nn.Linear(hidden, hidden), nn.ReLU()
        self.dropout2 = MaskedDropout(0.5)
        self.fc3 = nn.Linear(hidden, num_classes)
