"""ResNet as a module."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from funcnets.testing.twins.layers import Stem


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions added to a shortcut.

    (N, in_channels, H, W) -> (N, channels, H/stride, W/stride). The shortcut is the identity, or
    where the shape changes a bare 1×1 convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the ReLU of the main path plus the shortcut."""
        main = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(main)) + self.shortcut(x))


class ResNet(nn.Sequential):
    """ResNet (He et al., 2015): (N, in_channels, H, W) -> (N, num_classes).

    Stage i has `depths[i - 1]` residual blocks of `channels[i - 1]`; the default is ResNet-18.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        depths: Sequence[int] = (2, 2, 2, 2),
        channels: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        width = channels[0]
        self.stem = Stem(in_channels, width)
        for i, (depth, out) in enumerate(zip(depths, channels, strict=True), 1):
            stage = nn.Sequential()
            for j in range(1, depth + 1):
                stride = 2 if i > 1 and j == 1 else 1
                stage.add_module(f"block{j}", ResidualBlock(width, out, stride))
                width = out
            self.add_module(f"stage{i}", stage)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(width, num_classes)
