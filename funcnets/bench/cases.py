"""What a step is timed on."""

from typing import NamedTuple

import torch
from torch import Tensor

from funcnets import random

# Low enough that no network diverges, however often it sees the same random batch.
LEARNING_RATE = 1e-3


class Case(NamedTuple):
    """A network, and the sizes of its batch."""

    network: str
    batch_size: int
    side: int
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the images: (N, 1, side, side)."""
        return (self.batch_size, 1, self.side, self.side)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images in [0, 1), of `shape`, and labels of 10 classes."""
        images = random.uniform(random.key(1, self.device), self.shape)
        return images, torch.arange(self.batch_size, device=self.device) % 10
