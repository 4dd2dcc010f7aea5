"""Random layers that regularise a training: dropout and stochastic depth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from funcnets import random
from funcnets._validate import check
from funcnets.core import Layer, LayerError, Params, State, rewrite, wrap
from funcnets.layers._arguments import format_kind
from funcnets.layers._leaf import leaf, no_parameters


@dataclass(frozen=True)
class MultiplicativeNoise:
    """Tag of a random layer that in training multiplies its input by noise, an element each.

    The noise may depend on the key and the shape of the input, not on its values.
    `transforms.accumulate` and `transforms.per_example_gradients` then give each example the noise
    that it has in the whole batch.  A layer of your own may have this tag.
    """


def dropout(rate: float = 0.5) -> Layer:
    """Return dropout of inputs of any shape: x · mask / (1 - rate) in training, x in evaluation.

    The mask is `random.bernoulli(key, 1 - rate, x.shape)`: the key alone decides it, on every
    device.

    Args:
        rate: probability that an element becomes zero, in [0, 1).

    Raises ValueError for a rate out of range; LayerError, in training, without a key.
    Srivastava et al., Dropout, 2014.

    >>> import torch
    >>> from funcnets import layers, random
    >>> x = torch.ones(6)
    >>> layers.dropout(0.5).apply({}, {}, x, train=True, key=random.key(0))
    (tensor([0., 0., 2., 2., 0., 2.]), {})
    >>> layers.dropout(0.5).apply({}, {}, x)
    (tensor([1., 1., 1., 1., 1., 1.]), {})
    """
    kind = format_kind("dropout", rate)
    check(f"{kind}: rate", rate, lambda value: 0 <= value < 1, "a number in [0, 1)")
    return _dropped(kind, rate, lambda x: tuple(x.shape))


def stochastic_depth(rate: float, mode: Literal["row", "batch"] = "row") -> Layer:
    """Return x · mask / (1 - rate) in training, x in evaluation, with a mask of whole examples.

    At the end of the main path of `residual`, it skips the path.  It computes what
    `torchvision.ops.StochasticDepth` does, by the mask
    `random.bernoulli(key, 1 - rate, (N, 1, ...))`.

    Args:
        rate: probability that an example becomes zero, in [0, 1).
        mode: "row" for a draw for each example, "batch" for one for all.

    Raises ValueError for a rate out of range or another mode; LayerError, in training, without a
    key.
    Huang et al., Deep Networks with Stochastic Depth, 2016.

    >>> import torch
    >>> from funcnets import layers, random
    >>> layers.stochastic_depth(0.5).apply({}, {}, torch.ones(3, 2), train=True, key=random.key(1))
    (tensor([[2., 2.],
            [0., 0.],
            [2., 2.]]), {})
    """
    kind = format_kind("stochastic_depth", rate, mode=(mode, "row"))
    check(f"{kind}: rate", rate, lambda value: 0 <= value < 1, "a number in [0, 1)")
    if mode not in ("row", "batch"):
        raise ValueError(f"{kind}: mode is {mode!r}; expected row or batch")

    def shape(x: Tensor) -> tuple[int, ...]:
        return (x.shape[0] if mode == "row" else 1, *[1] * (x.ndim - 1))

    return _dropped(kind, rate, shape)


def _dropped(kind: str, rate: float, shape: Callable[[Tensor], tuple[int, ...]]) -> Layer:
    """Return the layer that multiplies by a mask of this shape, and by 1 / (1 - rate)."""

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if not train or rate == 0:
            return x, {}
        assert key is not None  # `leaf` checks it
        return x * random.bernoulli(key, 1 - rate, shape(x)) / (1 - rate), {}

    tags = (MultiplicativeNoise(),)
    return leaf(kind, no_parameters, apply, stochastic=rate > 0, tags=tags)


def noise_of_rows(net: Layer, rows: Tensor, count: int) -> Layer:
    """Return the network for the examples `rows`, (n,), of a batch of `count`, with their noise.

    A layer with the tag `MultiplicativeNoise` draws noise for the whole batch, and each example
    takes its own row of it.  So an example has the dropout mask that it has in the whole batch.

    Raises LayerError, from `apply` in training, for another random layer.
    """

    def replaced(name: str | None, layer: Layer) -> Layer:
        if not layer.stochastic or layer.rebuild is not None:
            return layer  # layers with parts draw by these

        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            if not train or key is None:
                return layer.apply(params, state, x, train=train, key=key)
            if layer.tag(MultiplicativeNoise) is None:
                raise LayerError(
                    f"{layer.kind}: it is unknown how this random layer draws for each example of "
                    "a batch: give it the tag layers.MultiplicativeNoise() if it multiplies its "
                    "input by noise, as dropout does"
                )
            # Not `x.new_ones`, which under vmap would draw the whole batch for each example.
            ones = torch.ones((count, *x.shape[1:]), dtype=x.dtype, device=x.device)
            noise, state = layer.apply(params, state, ones, train=True, key=key)
            return x * noise.index_select(0, rows), state

        return wrap(layer, lambda inner: apply)

    return rewrite(net, replaced)
