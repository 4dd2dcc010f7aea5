"""Random layers that regularise a training: dropout."""

from dataclasses import dataclass

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

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if not train or rate == 0:
            return x, {}
        assert key is not None  # `leaf` checks it
        keep = random.bernoulli(key, 1 - rate, tuple(x.shape))
        return x * keep / (1 - rate), {}

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
