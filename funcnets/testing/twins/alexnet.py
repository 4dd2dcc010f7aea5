"""AlexNet as a module."""

from collections.abc import Sequence

from torch import nn

from funcnets.testing.twins.layers import MaskedDropout, flat_features


class AlexNet(nn.Sequential):
    """AlexNet (Krizhevsky et al., 2012): (N, in_channels, side, side) -> (N, num_classes)."""

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        channels: Sequence[int] = (96, 256, 384, 384, 256),
        hidden: int = 4096,
        side: int = 224,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = channels
        self.conv1, self.relu1 = nn.Conv2d(in_channels, c1, 11, stride=4, padding=1), nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2)
        self.conv2, self.relu2 = nn.Conv2d(c1, c2, 5, padding=2), nn.ReLU()
        self.pool2 = nn.MaxPool2d(3, 2)
        self.conv3, self.relu3 = nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU()
        self.conv4, self.relu4 = nn.Conv2d(c3, c4, 3, padding=1), nn.ReLU()
        self.conv5, self.relu5 = nn.Conv2d(c4, c5, 3, padding=1), nn.ReLU()
        self.pool5 = nn.MaxPool2d(3, 2)
        self.flatten = nn.Flatten()
        self.fc6 = nn.Linear(flat_features(self, in_channels, side), hidden)
        self.relu6, self.dropout6 = nn.ReLU(), MaskedDropout(0.5)
        self.fc7, self.relu7 = nn.Linear(hidden, hidden), nn.ReLU()
        self.dropout7 = MaskedDropout(0.5)
        self.fc8 = nn.Linear(hidden, num_classes)
