"""LeNet with batch norm as a module."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from funcnets.testing.twins.layers import ScratchBatchNorm, flat_features


class LeNetBN(nn.Sequential):
    """LeNet with batch norm: (N, in_channels, side, side) -> (N, num_classes)."""

    norm_images: ClassVar[type[nn.Module]] = nn.BatchNorm2d
    norm_features: ClassVar[type[nn.Module]] = nn.BatchNorm1d

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        channels: Sequence[int] = (6, 16),
        hidden: Sequence[int] = (120, 84),
        side: int = 28,
    ) -> None:
        super().__init__()
        (c1, c2), (h1, h2) = channels, hidden
        self.conv1, self.bn1 = nn.Conv2d(in_channels, c1, 5), self.norm_images(c1)
        self.sigmoid1, self.pool1 = nn.Sigmoid(), nn.AvgPool2d(2, 2)
        self.conv2, self.bn2 = nn.Conv2d(c1, c2, 5), self.norm_images(c2)
        self.sigmoid2, self.pool2 = nn.Sigmoid(), nn.AvgPool2d(2, 2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(flat_features(self, in_channels, side), h1)
        self.bn3, self.sigmoid3 = self.norm_features(h1), nn.Sigmoid()
        self.fc2, self.bn4, self.sigmoid4 = nn.Linear(h1, h2), self.norm_features(h2), nn.Sigmoid()
        self.fc3 = nn.Linear(h2, num_classes)


class LeNetBNScratch(LeNetBN):
    """LeNetBN with the scratch convention of batch norm."""

    norm_images = ScratchBatchNorm
    norm_features = ScratchBatchNorm
