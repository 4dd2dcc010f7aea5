"""GoogLeNet as a module."""

import torch
from torch import Tensor, nn

from funcnets.testing.twins.layers import sequence

_INCEPTION_KERNELS = {"reference": (1, 3), "paper": (3, 5)}


class Inception(nn.Module):
    """Inception block: four branches joined on channels, ReLU after every convolution.

    `branch2` and `branch3` are (channels of the 1×1 reduction, channels of the wide convolution);
    the wide kernels are 1×1 and 3×3 in the variant `reference`, 3×3 and 5×5 in `paper`.
    (N, in_channels, H, W) -> (N, branch1 + branch2[1] + branch3[1] + branch4, H, W).
    Raises ValueError for an unknown variant.
    """

    def __init__(
        self,
        in_channels: int,
        branch1: int,
        branch2: tuple[int, int],
        branch3: tuple[int, int],
        branch4: int,
        variant: str = "reference",
    ) -> None:
        super().__init__()
        if variant not in _INCEPTION_KERNELS:
            raise ValueError(
                f"variant {variant!r}: expected one of {', '.join(_INCEPTION_KERNELS)}"
            )
        kernel2, kernel3 = _INCEPTION_KERNELS[variant]
        self.branch1 = sequence(conv=nn.Conv2d(in_channels, branch1, 1), relu=nn.ReLU())
        self.branch2 = self._wide_branch(in_channels, branch2, kernel2)
        self.branch3 = self._wide_branch(in_channels, branch3, kernel3)
        self.branch4 = sequence(
            pool=nn.MaxPool2d(3, 1, padding=1),
            conv=nn.Conv2d(in_channels, branch4, 1),
            relu=nn.ReLU(),
        )

    @staticmethod
    def _wide_branch(in_channels: int, channels: tuple[int, int], kernel: int) -> nn.Sequential:
        reduced, wide = channels
        return sequence(
            reduce=nn.Conv2d(in_channels, reduced, 1),
            reduce_relu=nn.ReLU(),
            conv=nn.Conv2d(reduced, wide, kernel, padding=kernel // 2),
            relu=nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the four branches, joined on channels."""
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], dim=1)


class GoogLeNetStem(nn.Sequential):
    """Stem of GoogLeNet: (N, in_channels, H, W) -> (N, out_channels, H/8, W/8)."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3)
        self.relu1, self.pool1 = nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
        self.conv2, self.relu2 = nn.Conv2d(channels, channels, 1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()
        self.pool3 = nn.MaxPool2d(3, 2, padding=1)


# Table 1 of the paper: widths of 1×1, reduction and 3×3, reduction and 5×5, and pool.
_BLOCKS = {
    "stage3": {
        "inception3a": (64, 96, 128, 16, 32, 32),
        "inception3b": (128, 128, 192, 32, 96, 64),
    },
    "stage4": {
        "inception4a": (192, 96, 208, 16, 48, 64),
        "inception4b": (160, 112, 224, 24, 64, 64),
        "inception4c": (128, 128, 256, 24, 64, 64),
        "inception4d": (112, 144, 288, 32, 64, 64),
        "inception4e": (256, 160, 320, 32, 128, 128),
    },
    "stage5": {
        "inception5a": (256, 160, 320, 32, 128, 128),
        "inception5b": (384, 192, 384, 48, 128, 128),
    },
}


class GoogLeNet(nn.Sequential):
    """GoogLeNet (Szegedy et al., 2014): (N, in_channels, H, W) -> (N, num_classes).

    All numbers of channels are divided by `divisor`; `depths` are the numbers of Inception blocks
    in the three stages, of which a shorter network has the first.  Raises ValueError unless
    `divisor` is 1, 2, 4 or 8.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        variant: str = "reference",
        divisor: int = 1,
        depths: tuple[int, int, int] = (2, 5, 2),
    ) -> None:
        super().__init__()
        if divisor not in (1, 2, 4, 8):
            raise ValueError(f"divisor {divisor}: only 1, 2, 4 and 8 divide every width")
        channels = 192 // divisor
        self.stem = GoogLeNetStem(in_channels, 64 // divisor, channels)
        pools: tuple[dict[str, nn.Module], ...] = (
            {"pool": nn.MaxPool2d(3, 2, padding=1)},
            {"pool": nn.MaxPool2d(2, 2, padding=1)},
            {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()},
        )
        for (stage, blocks), depth, last in zip(_BLOCKS.items(), depths, pools, strict=True):
            parts: dict[str, nn.Module] = {}
            for name in [*blocks][:depth]:
                c1, r2, c2, r3, c3, c4 = (width // divisor for width in blocks[name])
                parts[name] = Inception(channels, c1, (r2, c2), (r3, c3), c4, variant)
                channels = c1 + c2 + c3 + c4
            self.add_module(stage, sequence(**parts, **last))
        self.fc = nn.Linear(channels, num_classes)
