"""The cases of the benchmark: a network, the sizes of its batch, and the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from funcnets import random

# So low that no network diverges, however often it is trained on the same random batch.
LEARNING_RATE = 1e-3


class Case(NamedTuple):
    """A network, the sizes of its batch, and the device that it runs on."""

    network: str
    batch_size: int
    side: int  # of the images, in pixels
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the images: (N, 1, side, side)."""
        return (self.batch_size, 1, self.side, self.side)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return random images in [0, 1), of `shape`, and labels of 10 classes, (N,)."""
        images = random.uniform(random.key(1, self.device), self.shape)
        return images, torch.arange(self.batch_size, device=self.device) % 10
