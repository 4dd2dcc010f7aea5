"""Tensors for tests: normal numbers, the memory formats that they can have, and equality."""

import torch

from funcnets import random, tree


def numbers(*shape, seed=0, dtype=torch.float64):
    """Return normally distributed numbers; of the same values, rounded, in each dtype."""
    return random.normal(random.key(seed), shape, torch.float64).to(dtype)


def with_gaps(x):
    """Return the same values with gaps between them in memory."""
    return torch.stack([x, x], -1)[..., 0]


def channels_last(x):
    """Return feature maps in channels_last; others as they are."""
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def slice_of_channels(x):
    """Return feature maps as channels of wider ones in channels_last; others as they are."""
    return channels_last(torch.cat([x, x], 1))[:, : x.shape[1]] if x.ndim == 4 else x


FORMATS = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": channels_last,
    "gaps": with_gaps,
    "slice": slice_of_channels,
}


def same(first, second):
    """Return True if two trees have the same names and the same numbers."""
    first, second = tree.flatten_named(first), tree.flatten_named(second)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
