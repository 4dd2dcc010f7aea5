"""The eight networks and their blocks as plain modules: what the functional version must equal.

An `nn.Sequential` runs its parts in the order in which they are assigned, so each class reads
as its table. Parameters start at torch's own default values: load others over them to compare.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class MaskedDropout(nn.Module):
    """Dropout whose mask can be given: x * mask / (1 - p) in training, x in evaluation.

    `mask` is a bool tensor of x's shape, True where a value is kept; None draws one from torch's
    generator. Raises ValueError for p outside [0, 1) and for a mask of another shape than x.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout rate {p}: give the share that is dropped, 0 <= p < 1")
        self.p = p
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of `x`, of any shape."""
        if not self.training:
            return x
        if self.mask is None:
            return F.dropout(x, self.p)
        if self.mask.shape != x.shape:
            raise ValueError(
                f"dropout mask has shape {tuple(self.mask.shape)} and its input "
                f"{tuple(x.shape)}: set `mask` to a bool tensor of the input's shape"
            )
        return x * self.mask / (1 - self.p)


class ScratchBatchNorm(nn.Module):
    """Batch norm of (N, C) or (N, C, H, W) that keeps the biased variance.

    Running statistics are momentum * old + (1 - momentum) * batch. Raises ValueError for an input
    of another rank or channel count, and in training for one value per channel.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.9, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` by the batch's statistics in training, by the running ones otherwise."""
        channels = len(self.weight)
        if x.ndim not in (2, 4) or x.shape[1] != channels:
            raise ValueError(
                f"expected an input of shape (N, {channels}) or (N, {channels}, H, W), "
                f"got {tuple(x.shape)}"
            )
        shape = (1, channels) + (1,) * (x.ndim - 2)
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self._batch_statistics(x)
        normal = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + self.eps)
        return normal * self.weight.view(shape) + self.bias.view(shape)

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.numel() <= x.shape[1]:
            raise ValueError(
                f"expected more than 1 value per channel when training, got input size "
                f"{tuple(x.shape)}: give a larger batch or image, or call eval()"
            )
        over = [0, *range(2, x.ndim)]
        mean, var = x.mean(over), x.var(over, unbiased=False)
        with torch.no_grad():
            momentum = self.momentum
            self.running_mean.copy_(momentum * self.running_mean + (1 - momentum) * mean)
            self.running_var.copy_(momentum * self.running_var + (1 - momentum) * var)
        return mean, var


def _sequence(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def _flat_features(module: nn.Module, in_channels: int, side: int) -> int:
    """Features a row that `module` makes of images (N, in_channels, side, side)."""
    meta = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    images = torch.empty(1, in_channels, side, side, device="meta")
    return functional_call(module, meta, images).shape[1]


class AlexNet(nn.Sequential):
    """AlexNet (Krizhevsky et al., 2012): (N, in_channels, side, side) to (N, num_classes)."""

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
        self.fc6 = nn.Linear(_flat_features(self, in_channels, side), hidden)
        self.relu6, self.dropout6 = nn.ReLU(), MaskedDropout(0.5)
        self.fc7, self.relu7 = nn.Linear(hidden, hidden), nn.ReLU()
        self.dropout7 = MaskedDropout(0.5)
        self.fc8 = nn.Linear(hidden, num_classes)


class VGGBlock(nn.Sequential):
    """`convs` 3x3 convolutions with ReLU, then max pooling, which halves H and W."""

    def __init__(self, in_channels: int, convs: int, channels: int) -> None:
        super().__init__()
        for i in range(1, convs + 1):
            width = in_channels if i == 1 else channels
            self.add_module(f"conv{i}", nn.Conv2d(width, channels, 3, padding=1))
            self.add_module(f"relu{i}", nn.ReLU())
        self.pool = nn.MaxPool2d(2, 2)


class VGG(nn.Sequential):
    """VGG (Simonyan & Zisserman, 2014): (N, in_channels, side, side) to (N, num_classes).

    `arch` lists its blocks as (convs, channels), VGG-11's unless told.
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
        self.fc1 = nn.Linear(_flat_features(self, in_channels, side), hidden)
        self.relu1, self.dropout1 = nn.ReLU(), MaskedDropout(0.5)
        self.fc2, self.relu2 = nn.Linear(hidden, hidden), nn.ReLU()
        self.dropout2 = MaskedDropout(0.5)
        self.fc3 = nn.Linear(hidden, num_classes)


class NiNBlock(nn.Sequential):
    """A convolution and two 1x1 convolutions to `channels`, ReLU after each."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding)
        self.relu1 = nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(channels, channels, 1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(channels, channels, 1), nn.ReLU()


class NiN(nn.Sequential):
    """Network in network (Lin et al., 2013): (N, in_channels, H, W) to (N, num_classes)."""

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


_INCEPTION_KERNELS = {"reference": (1, 3), "paper": (3, 5)}


class Inception(nn.Module):
    """Four branches joined on channels, ReLU after every convolution.

    `branch2` and `branch3` are (channels of the 1x1 reduction, channels of the wide convolution);
    the wide kernels are 1 and 3 in the `reference` variant, 3 and 5 in the `paper`'s.
    (N, in_channels, H, W) to (N, branch1 + branch2[1] + branch3[1] + branch4, H, W). Raises
    ValueError for an unknown variant.
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
        self.branch1 = _sequence(conv=nn.Conv2d(in_channels, branch1, 1), relu=nn.ReLU())
        self.branch2 = self._wide_branch(in_channels, branch2, kernel2)
        self.branch3 = self._wide_branch(in_channels, branch3, kernel3)
        self.branch4 = _sequence(
            pool=nn.MaxPool2d(3, 1, padding=1),
            conv=nn.Conv2d(in_channels, branch4, 1),
            relu=nn.ReLU(),
        )

    @staticmethod
    def _wide_branch(in_channels: int, channels: tuple[int, int], kernel: int) -> nn.Sequential:
        reduced, wide = channels
        return _sequence(
            reduce=nn.Conv2d(in_channels, reduced, 1),
            reduce_relu=nn.ReLU(),
            conv=nn.Conv2d(reduced, wide, kernel, padding=kernel // 2),
            relu=nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Join what the four branches make of `x`."""
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], dim=1)


class GoogLeNetStem(nn.Sequential):
    """Start of GoogLeNet: (N, in_channels, H, W) to (N, out_channels, H/8, W/8)."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3)
        self.relu1, self.pool1 = nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
        self.conv2, self.relu2 = nn.Conv2d(channels, channels, 1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()
        self.pool3 = nn.MaxPool2d(3, 2, padding=1)


class GoogLeNet(nn.Sequential):
    """GoogLeNet (Szegedy et al., 2014): (N, in_channels, H, W) to (N, num_classes).

    Every width is divided by `divisor`; raises ValueError unless that is 1, 2, 4 or 8.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        variant: str = "reference",
        divisor: int = 1,
    ) -> None:
        super().__init__()
        if divisor not in (1, 2, 4, 8):
            raise ValueError(f"divisor {divisor}: only 1, 2, 4 and 8 divide every width")

        def block(*widths: int) -> Inception:
            c, c1, r2, c2, r3, c3, c4 = (width // divisor for width in widths)
            return Inception(c, c1, (r2, c2), (r3, c3), c4, variant)

        self.stem = GoogLeNetStem(in_channels, 64 // divisor, 192 // divisor)
        self.stage3 = _sequence(
            inception3a=block(192, 64, 96, 128, 16, 32, 32),
            inception3b=block(256, 128, 128, 192, 32, 96, 64),
            pool=nn.MaxPool2d(3, 2, padding=1),
        )
        self.stage4 = _sequence(
            inception4a=block(480, 192, 96, 208, 16, 48, 64),
            inception4b=block(512, 160, 112, 224, 24, 64, 64),
            inception4c=block(512, 128, 128, 256, 24, 64, 64),
            inception4d=block(512, 112, 144, 288, 32, 64, 64),
            inception4e=block(528, 256, 160, 320, 32, 128, 128),
            pool=nn.MaxPool2d(2, 2, padding=1),
        )
        self.stage5 = _sequence(
            inception5a=block(832, 256, 160, 320, 32, 128, 128),
            inception5b=block(832, 384, 192, 384, 48, 128, 128),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
        self.fc = nn.Linear(1024 // divisor, num_classes)


class LeNetBN(nn.Sequential):
    """LeNet with batch norm: (N, in_channels, side, side) to (N, num_classes)."""

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
        self.fc1 = nn.Linear(_flat_features(self, in_channels, side), h1)
        self.bn3, self.sigmoid3 = self.norm_features(h1), nn.Sigmoid()
        self.fc2, self.bn4, self.sigmoid4 = nn.Linear(h1, h2), self.norm_features(h2), nn.Sigmoid()
        self.fc3 = nn.Linear(h2, num_classes)


class LeNetBNScratch(LeNetBN):
    """LeNetBN with the scratch convention of batch norm."""

    norm_images = ScratchBatchNorm
    norm_features = ScratchBatchNorm


class Stem(nn.Sequential):
    """Start of ResNet and DenseNet: (N, in_channels, H, W) to (N, channels, H/4, W/4)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3)
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, padding=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to a shortcut.

    (N, in_channels, H, W) to (N, channels, H/stride, W/stride). The shortcut is the identity, or
    where the shape changes a bare 1x1 convolution.
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
        """ReLU of the shortcut of `x` and its main path."""
        main = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(main)) + self.shortcut(x))


class ResNet(nn.Sequential):
    """ResNet (He et al., 2015): (N, in_channels, H, W) to (N, num_classes).

    Stage i has `depths[i - 1]` residual blocks of `channels[i - 1]`; ResNet-18 unless told.
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


class DenseLayer(nn.Sequential):
    """Batch norm, ReLU, 3x3 convolution, joined to the input: C channels to C + growth."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Join `x` and what the layer makes of it, on channels."""
        return torch.cat((x, super().forward(x)), dim=1)


class DenseBlock(nn.Sequential):
    """Dense layers in a row: C channels to C + layers * growth."""

    def __init__(self, in_channels: int, layers: int, growth: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"layer{i + 1}", DenseLayer(in_channels + i * growth, growth))


class TransitionBlock(nn.Sequential):
    """Batch norm, ReLU, 1x1 convolution, average pool: (N, C, H, W) to (N, channels, H/2, W/2)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv, self.pool = nn.Conv2d(in_channels, channels, 1), nn.AvgPool2d(2, 2)


class DenseNet(nn.Sequential):
    """DenseNet (Huang et al., 2016): (N, in_channels, H, W) to (N, num_classes).

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


_TWINS: Mapping[str, type[nn.Module]] = {
    "alexnet": AlexNet,
    "vgg11": VGG,
    "nin": NiN,
    "googlenet": GoogLeNet,
    "lenet_bn": LeNetBN,
    "lenet_bn_scratch": LeNetBNScratch,
    "resnet18": ResNet,
    "densenet": DenseNet,
}


def get(name: str, **options: Any) -> nn.Module:
    """The twin of the network `name`, built with the `options` of its class.

    Raises ValueError for an unknown name.
    """
    if name not in _TWINS:
        raise ValueError(f"no twin is called {name!r}: expected one of {', '.join(_TWINS)}")
    return _TWINS[name](**options)
