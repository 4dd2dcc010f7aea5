"""Check for infinities and NaN: find the first layer with a value that isn't finite."""

import torch
from torch import Tensor

from funcnets.core import Apply, Layer, LayerError, Params, State, rewrite, wrap
from funcnets.layers.normalization import is_vmapped


class NonFiniteError(LayerError):
    """Error of the first layer with an infinite or NaN input, parameter, statistic or output."""


def check_finite(net: Layer) -> Layer:
    """Return the network that raises at the first layer with a value that isn't finite.

    Each layer without parts checks its input, its parameters and statistics, and its output, in
    this order.  Values are read, so it works eagerly and under `grad`, not under `jit` or `vmap`.

    Raises, from `apply`, NonFiniteError with the layer's path, and LayerError under `vmap`.

    >>> import torch
    >>> from funcnets import layers, sequential, transforms
    >>> net = transforms.check_finite(sequential(act=layers.relu()))
    >>> net.apply({}, {}, torch.tensor([[1.0, torch.inf]]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    funcnets.transforms.nan_check.NonFiniteError: act: was given an input of shape (1, 2) with 1 ...
    """
    return rewrite(net, lambda name, layer: layer if layer.parts else wrap(layer, _with_checks))


def _with_checks(inner: Apply) -> Apply:
    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        _check("was given an input", x)
        for name, leaf in (params | state).items():
            if isinstance(
                leaf, Tensor
            ):  # a layer without a name is given its neighbours' trees too
                _check(f"has a `{name}`", leaf)
        y, state = inner(params, state, x, train=train, key=key)
        _check("gives an output", y)
        return y, state

    return apply


def _check(description: str, values: Tensor) -> None:
    if values.is_meta:  # in `init`, which needs only shapes
        return
    if is_vmapped(values):
        raise LayerError(
            "check_finite: values can't be read under vmap: check one example or member at a "
            "time, such as those of ensemble.unstack(members)"
        )
    values = values.detach()
    non_finite = ~torch.isfinite(values)
    if not non_finite.any():
        return
    index = tuple(int(i) for i in non_finite.nonzero()[0])
    raise NonFiniteError(
        f"{description} of shape {tuple(values.shape)} with {int(non_finite.sum())} values that "
        f"aren't finite, the first, at {index}, is {float(values[index])}"
    )
