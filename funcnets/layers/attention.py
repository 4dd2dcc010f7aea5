"""Attention over channels."""

import torch
from torch import Tensor

from funcnets.core import ApplyPart, Layer, LayerError, check_input, combine
from funcnets.layers._arguments import check_counts
from funcnets.layers.convolution import conv2d


def squeeze_excite(channels: int, squeeze: int) -> Layer:
    """Return x · sigmoid(fc2(relu(fc1(mean of x over the image)))), (N, channels, H, W) for both.

    It computes what `torchvision.ops.SqueezeExcitation` does, with the same names: `fc1` and `fc2`
    are 1×1 convolutions, to `squeeze` channels and back.

    Args:
        channels: number of channels of the input.
        squeeze: number of channels between.

    Raises ValueError unless both are whole numbers, 1 or more; LayerError for another number of
    channels.
    Hu et al., Squeeze-and-Excitation Networks, 2017.

    >>> import torch
    >>> from funcnets import layers, random, tree
    >>> layer, x = layers.squeeze_excite(8, 2), torch.zeros(1, 8, 5, 5)
    >>> tree.names(layer.init(random.key(0), x)[0])
    ['fc1.bias', 'fc1.weight', 'fc2.bias', 'fc2.weight']
    """
    kind = f"squeeze_excite({channels}, {squeeze})"
    check_counts(kind, channels=channels, squeeze=squeeze)

    def forward(apply_part: ApplyPart, x: Tensor) -> Tensor:
        check_input(kind, x)
        if x.ndim == 4 and x.shape[1] != channels:
            raise LayerError(f"{kind}: got {x.shape[1]} channels, expected {channels}")
        # An input of another rank or dtype is refused by fc1.
        mean = x.mean((2, 3), keepdim=True) if x.ndim == 4 and x.is_floating_point() else x
        return x * torch.sigmoid(apply_part(1, torch.relu(apply_part(0, mean))))

    return combine(kind, [("fc1", conv2d(squeeze, 1)), ("fc2", conv2d(channels, 1))], forward)
