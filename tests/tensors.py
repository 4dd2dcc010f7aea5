"""Tensors for tests: normally distributed numbers, and the memory formats that they can have."""

import torch

from funcnets import random


def numbers(*shape, seed=0, dtype=torch.float64):
    """Return normally distributed numbers; of the same values, rounded, in each dtype."""
    return random.normal(random.key(seed), shape, torch.float64).to(dtype)


def with_gaps(x):
    """Return the same values with gaps between them in memory."""
    return torch.stack([x, x], -1)[..., 0]


def channels_last(x):
    """Return feature maps in channels_last; others as they are."""
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


FORMATS = {"contiguous": torch.Tensor.contiguous, "channels_last": channels_last, "gaps": with_gaps}
