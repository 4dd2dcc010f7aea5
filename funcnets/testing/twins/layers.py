"""Layers of the twins that PyTorch does not have, and helpers to build modules."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedDropout(nn.Module):
    """Dropout with an explicit mask: x · mask / (1 - p) in training, x in evaluation.

    Set `mask` to a bool tensor of x's shape, True for values that are kept; None draws one from
    torch's generator.  Raises ValueError for p outside [0, 1) and for a mask of another shape.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p is {p}; expected the fraction of values to drop, in [0, 1)")
        self.p = p
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of `x`, of any shape; raise ValueError for a mask of another one."""
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
    """Batch norm of (N, C) or (N, C, H, W) whose running variance averages biased variances.

    Running statistics become momentum · running + (1 - momentum) · batch.  Raises ValueError for an
    input of another rank or number of channels, and in training for one value per channel.
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
        """Normalise `x` by the batch's statistics in training, by the running ones otherwise.

        Raises ValueError as the class says.
        """
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


def sequence(**parts: nn.Module) -> nn.Sequential:
    """Return an `nn.Sequential` of named parts."""
    return nn.Sequential(OrderedDict(parts))


def flat_features(module: nn.Module, in_channels: int, side: int) -> int:
    """Return the number of output features of `module` for images (N, in_channels, side, side)."""
    images = torch.empty(1, in_channels, side, side, device="meta")
    features: Tensor = copy.deepcopy(module).to("meta")(images)
    return features.shape[1]


class Stem(nn.Sequential):
    """Stem of ResNet and DenseNet: (N, in_channels, H, W) -> (N, channels, H/4, W/4)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3)
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, padding=1)
