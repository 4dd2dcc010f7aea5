"""Network in network as a module."""

from collections.abc import Sequence

from torch import nn

from funcnets.testing.twins.layers import MaskedDropout


class NiNBlock(nn.Sequential):
    """A convolution and two 1×1 convolutions to `channels`, ReLU after each."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding)
        self.relu1 = nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(channels, channels, 1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(channels, channels, 1), nn.ReLU()


class NiN(nn.Sequential):
    """Network in network (Lin et al., 2013): (N, in_channels, H, W) -> (N, num_classes)."""

    def __init__(
        self, in_channels: int = 1, num_classes: int = 10, channels: Sequence[int] = (96, 256, 384)
    ) -> None:
        super().__init__()
        c1, c2, c3 = channels
        self.block1, self.pool1 = NiNBlock(in_channels, c1, 11, stride=4), nn.MaxPool2d(3, 2)
        self.block2, self.pool2 = NiNBlock(c1, c2, 5, padding=2), nn.MaxPool2d(3, 2)
        self.block3, self.pool3 = NiNBlock(c2, c3, 3, padding=1), nn.MaxPool2d(3, 2)
        self.dropout = MaskedDropout(0.5)
        self.block4 = NiNBlock(c3, num_classes, 3, padding=1)
        self.pool4, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
