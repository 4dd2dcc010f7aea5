"""Where in a network the first value appears that is no finite number."""

import torch
from torch import Tensor

from funcnets.core import Apply, Layer, LayerError, Params, State, rewrite, wrap
from funcnets.layers.normalization import is_vmapped


class NonFiniteError(LayerError):
    """A layer was given, holds or gives a value that is infinite or not a number."""


def checked(net: Layer) -> Layer:
    """The same network, that stops at the first layer with a value that isn't finite, and names it.

    Each layer without parts looks at its input, its parameters and statistics, and its output, in
    this order.  It reads values: so it works eagerly and under `grad`, not under `jit` or `vmap`.

    Raises, from `apply`, NonFiniteError, and LayerError under `vmap`.
    """
    return rewrite(net, lambda name, layer: layer if layer.parts else wrap(layer, _checking))


def _checking(inner: Apply) -> Apply:
    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        _check("was given an input", x)
        for name, leaf in (params | state).items():
            if isinstance(leaf, Tensor):  # an unnamed layer sees the trees of its neighbours too
                _check(f"has a `{name}`", leaf)
        y, state = inner(params, state, x, train=train, key=key)
        _check("gives an output", y)
        return y, state

    return apply


def _check(what: str, values: Tensor) -> None:
    if values.is_meta:  # `init` asks for shapes alone
        return
    if is_vmapped(values):
        raise LayerError(
            "checked: reads values, which vmap doesn't let it: check one example or member at a "
            "time, as those of ensemble.unstack(members)"
        )
    values = values.detach()
    bad = ~torch.isfinite(values)
    if not bad.any():
        return
    place = tuple(int(index) for index in bad.nonzero()[0])
    raise NonFiniteError(
        f"{what} of shape {tuple(values.shape)} with {int(bad.sum())} values that aren't finite, "
        f"the first, at {place}, is {float(values[place])}"
    )
