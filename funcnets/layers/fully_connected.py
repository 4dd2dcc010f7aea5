"""Fully connected layers, on rows of features (N, C)."""

import torch.nn.functional as F
from torch import Tensor

from funcnets.core import Layer, Params, State
from funcnets.initializers import Initializer
from funcnets.layers._arguments import check_counts, format_kind
from funcnets.layers._leaf import leaf
from funcnets.layers._weights import check_weight, draw_weights, weight_names


def linear(
    features: int,
    *,
    bias: bool = True,
    initializer: Initializer | None = None,
    bias_initializer: Initializer | None = None,
) -> Layer:
    """Return the linear map x Wᵀ + b, (N, C) -> (N, features), as `torch.nn.Linear`.

    Args:
        features: number of output features.
        bias: True for a bias.
        initializer: draws `weight` (features, C); None for Xavier uniform.
        bias_initializer: draws `bias` (features,); None for uniform in ±1/√C.

    Raises ValueError unless `features` is a whole number, 1 or more.

    >>> import torch
    >>> from funcnets import layers, random
    >>> layer, x = layers.linear(3), torch.ones(2, 4)
    >>> params, state = layer.init(random.key(0), x)
    >>> torch.equal(layer.apply(params, state, x)[0], x @ params["weight"].T + params["bias"])
    True
    """
    kind = format_kind("linear", features, bias=(bias, True))
    check_counts(kind, features=features)

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        shape = (features, x.shape[1])
        return draw_weights(key, shape, x, initializer, bias, bias_initializer), {}

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        weight = params["weight"]
        check_weight(kind, x, weight, (features, weight.shape[1]), weight.shape[1], "features")
        return F.linear(x, weight, params["bias"] if bias else None), {}

    return leaf(kind, init, apply, ranks=(2,), params=weight_names(bias))
