"""Leaf layers, which have no parts: their inputs and trees are checked here, once for all."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from funcnets.core import (
    Apply,
    Init,
    Layer,
    LayerError,
    Params,
    State,
    check_input,
    format_shape,
)

LAYOUTS = {2: "(N, C)", 4: "(N, C, H, W)"}


def leaf(
    kind: str,
    init: Init,
    apply: Apply,
    *,
    ranks: Sequence[int] = (),
    params: Sequence[str] = (),
    state: Sequence[str] = (),
    stochastic: bool = False,
    tags: Sequence[object] = (),
) -> Layer:
    """Return a layer without parts whose inputs and trees are checked before `init` and `apply`.

    Args:
        kind: description of the layer, with which its errors begin.
        init, apply: as those of `Layer`.
        ranks: numbers of dimensions that an input may have, of 2 and 4; empty for any.
        params, state: names of its parameters and of its statistics.
        stochastic, tags: as those of `Layer`.

    The layer raises LayerError for an input that isn't a floating tensor of these ranks, and for
    parameters or statistics that are missing.
    """

    names = {"params": params, "state": state}

    def checked_init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        _check_features(kind, ranks, x)
        return init(key, x)

    def checked_apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        _check_features(kind, ranks, x)
        _check_names(kind, "params", names["params"], params)
        _check_names(kind, "state", names["state"], state)
        return apply(params, state, x, train=train, key=key)

    return Layer(kind, checked_init, checked_apply, stochastic=stochastic, tags=tuple(tags))


def no_parameters(key: Tensor, x: Tensor) -> tuple[Params, State]:
    """Return empty trees: the `init` of a layer without parameters."""
    return {}, {}


def function_layer(
    kind: str, function: Callable[[Tensor], Tensor], ranks: Sequence[int] = ()
) -> Layer:
    """Return the layer that applies `function`, in training and in evaluation, to its input."""

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return function(x), {}

    return leaf(kind, no_parameters, apply, ranks=ranks)


def _check_features(kind: str, ranks: Sequence[int], x: Tensor) -> None:
    check_input(kind, x)
    if not x.is_floating_point():
        raise LayerError(
            f"{kind}: got {x.dtype} input, expected floating point: "
            "convert images with funcnets.data.prepare, or x.float() / 255"
        )
    if ranks and x.ndim not in ranks:
        layout = " or ".join(LAYOUTS[rank] for rank in ranks)
        raise LayerError(f"{kind}: got an input of shape {format_shape(x)}, expected {layout}")


def _check_names(kind: str, which: str, names: Sequence[str], given: Mapping[str, object]) -> None:
    for name in names:
        if name not in given:
            raise LayerError(
                f"{kind}: its part of {which} is {list(given)}, without {name!r}: give apply the "
                "params and the state, in this order, that the network's init gave; these are "
                "another network's, or not in their places"
            )
