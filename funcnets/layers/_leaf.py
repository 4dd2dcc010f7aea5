"""Leaf layers, which have no parts: their inputs and trees are checked here, once for all."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from funcnets._validate import is_whole
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

LAYOUTS = {1: "(N,)", 2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}

Shapes = Mapping[str, Callable[[Tensor], Sequence[int]]]
"""Functions from an input to the shape that each parameter, or statistic, must have for it."""


def leaf(
    kind: str,
    init: Init,
    apply: Apply,
    *,
    ranks: Sequence[int] = (),
    params: Sequence[str] | Shapes = (),
    state: Sequence[str] | Shapes = (),
    stochastic: bool = False,
    tags: Sequence[object] = (),
) -> Layer:
    """Return a layer without parts whose inputs and trees are checked before `init` and `apply`.

    Args:
        kind: description of the layer, with which its errors begin.
        init, apply: as those of `Layer`.  They must not change their arguments; a layer without
            parameters and statistics gives {} for them.
        ranks: numbers of dimensions that an input may have; empty for any.
        params, state: names of its parameters and of its statistics; or a mapping from each name to
            the function that gives its shape for an input.
        stochastic, tags: as those of `Layer`.

    The layer raises LayerError for an input that isn't a floating tensor of these ranks; for
    parameters or statistics that are missing or have another shape; for parameters in another dtype
    than the input (under autocast any will do); and, if it is stochastic, for a missing key in
    training.

    Raises TypeError if `init` or `apply` is no function, ValueError for an impossible rank.

    >>> import torch
    >>> from funcnets import layers, random
    >>> def init(key, x):
    ...     return {"scale": torch.ones(x.shape[1], dtype=x.dtype, device=key.device)}, {}
    >>> def apply(params, state, x, *, train=False, key=None):
    ...     return params["scale"] * x, {}
    >>> shapes = {"scale": lambda x: x.shape[1:]}
    >>> scale = layers.leaf("scale()", init, apply, ranks=(2,), params=shapes)
    >>> params, state = scale.init(random.key(0), torch.ones(2, 3))
    >>> scale.apply(params, state, torch.ones(2, 4))
    Traceback (most recent call last):
    ...
    funcnets.core.LayerError: scale(): its scale has shape (3,), expected (4,) for an input of \
shape (2, 4): the input has another shape than at init, or these parameters are another network's
    """
    _check_arguments(kind, init, apply, ranks)
    expected = {"params": params, "state": state}

    def checked_init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        _check_features(kind, ranks, x)
        return init(key, x)

    def checked_apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        _check_features(kind, ranks, x)
        _check_leaves(kind, "params", expected["params"], params, x)
        _check_leaves(kind, "state", expected["state"], state, x)
        _check_dtypes(kind, expected["params"], params, x)
        if stochastic and train and key is None:
            raise LayerError(
                f"{kind}: needs a key in training: "
                "apply(params, state, x, train=True, key=funcnets.random.key(0))"
            )
        return apply(params, state, x, train=train, key=key)

    return Layer(kind, checked_init, checked_apply, stochastic=stochastic, tags=tuple(tags))


def no_parameters(key: Tensor, x: Tensor) -> tuple[Params, State]:
    """Return empty trees: the `init` of a layer without parameters."""
    return {}, {}


def function_layer(
    kind: str, function: Callable[[Tensor], Tensor], ranks: Sequence[int] = ()
) -> Layer:
    """Return the layer that applies `function`, in training and in evaluation, to its input.

    `kind` and `ranks`, and the checks, are those of `leaf`.

    >>> import torch
    >>> from funcnets import layers
    >>> softsign = layers.function_layer("softsign()", torch.nn.functional.softsign)
    >>> softsign.apply({}, {}, torch.tensor([[1.0, -3.0]]))
    (tensor([[ 0.5000, -0.7500]]), {})
    """

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
        layout = " or ".join(LAYOUTS.get(rank, f"{rank} dimensions") for rank in ranks)
        raise LayerError(f"{kind}: got an input of shape {format_shape(x)}, expected {layout}")


def _check_arguments(kind: str, init: Init, apply: Apply, ranks: Sequence[int]) -> None:
    for name, value in (("init", init), ("apply", apply)):
        if not callable(value):
            raise TypeError(f"{kind}: {name} is {value!r}; expected a function")
    if not all(is_whole(rank, 1) for rank in ranks):
        raise ValueError(f"{kind}: ranks is {ranks!r}; expected whole numbers, 1 or more")


def _check_leaves(
    kind: str, which: str, expected: Sequence[str] | Shapes, given: Mapping[str, Tensor], x: Tensor
) -> None:
    for name in expected:
        if name not in given:
            raise LayerError(
                f"{kind}: its part of {which} is {list(given)}, without {name!r}: give apply the "
                "params and the state, in this order, that the network's init gave; these are "
                "another network's, or not in their places"
            )
        if not isinstance(expected, Mapping):
            continue
        shape = tuple(expected[name](x))
        if given[name].shape != shape:
            raise LayerError(
                f"{kind}: its {name} has shape {tuple(given[name].shape)}, expected {shape} for an "
                f"input of shape {tuple(x.shape)}: the input has another shape than at init, or "
                "these parameters are another network's"
            )


def _check_dtypes(
    kind: str, names: Sequence[str] | Shapes, params: Mapping[str, Tensor], x: Tensor
) -> None:
    # Under autocast the operation itself casts both.
    if not names or ((x.is_cpu or x.is_cuda) and torch.is_autocast_enabled(x.device.type)):
        return
    for name in names:
        if params[name].dtype != x.dtype:
            raise LayerError(
                f"{kind}: got {x.dtype} input and {params[name].dtype} weights: cast one of them"
            )
