"""Published results of the networks, by the recipes `reference` on Fashion-MNIST."""

from typing import NamedTuple


class Published(NamedTuple):
    """Results of a network after ten epochs on the 60,000 images of Fashion-MNIST."""

    train_loss: float
    train_accuracy: float
    test_accuracy: float
    examples_per_second: float  # on a GPU


# Zhang, Lipton, Li and Smola, "Dive into deep learning", chapter 8.  For LeNet with batch norm it
# prints no numbers.
PUBLISHED = {
    "alexnet": Published(0.329, 0.881, 0.883, 5459),
    "vgg11": Published(0.287, 0.894, 0.887, 1056),
    "nin": Published(0.389, 0.854, 0.859, 4985),
    "googlenet": Published(0.301, 0.885, 0.875, 5651),
    "resnet18": Published(0.126, 0.951, 0.897, 20822),
    "densenet": Published(0.140, 0.949, 0.904, 9091),
}
PUBLISHED_IMAGES = 60_000

# Lowest and highest test accuracy of other people's runs of the book's notebooks.
NOTEBOOKS = {
    "nin": (0.10, 0.875),
    "googlenet": (0.854, 0.902),
    "lenet_bn": (0.68, 0.89),
    "resnet18": (0.67, 0.92),
}
