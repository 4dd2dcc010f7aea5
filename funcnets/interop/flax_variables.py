"""Conversion of parameters and state from and to the variables of `flax.linen`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from funcnets import _extras, tree
from funcnets.core import Params, State
from funcnets.interop.state_dict import (
    InteropError,
    Rename,
    Values,
    from_state_dict,
    renamed,
    to_state_dict,
)

_COLLECTIONS = {
    "params": {"kernel": "weight", "scale": "weight", "bias": "bias"},
    "batch_stats": {"mean": "running_mean", "var": "running_var"},
}
_STATISTICS = {ours: theirs for theirs, ours in _COLLECTIONS["batch_stats"].items()}

Flattened = Mapping[str, Sequence[int]]
"""From names of linear layers, in funcnets, to the shape (C, H, W) that is flattened before each.

Flax flattens (H, W, C), funcnets (C, H, W), so the columns of such a weight are in another order.
"""


def from_flax(
    variables: Mapping[str, Any],
    *,
    like: Values | None = None,
    rename: Rename | None = None,
    flattened: Flattened | None = None,
) -> tuple[Params, State]:
    """Return `(params, state)` with copies of the variables of a `flax.linen` module.

    Kernels (H, W, in, out) of `Conv` become weights (out, in, H, W), kernels (in, out) of `Dense`
    weights (out, in); `scale` of a norm becomes `weight`, `mean` and `var` become `running_mean`
    and `running_var`.

    Args:
        variables: `{"params": …, "batch_stats": …}` of arrays, as `module.init` returns it.
        like: `(params, state)` whose names and shapes the result must have; None for any.
        rename: from the names of Flax's parts to those of funcnets, such as
            `{"Conv_0": "conv1"}`; see `Rename`.
        flattened: {"fc": (C, H, W)} for each linear layer `fc`, by its name in funcnets, whose
            input is a flattened feature map.

    Raises InteropError for other collections and leaves, for a shape in `flattened` that doesn't
    fit, and as `from_state_dict`.  A kernel of `ConvTranspose` can't be told from one of `Conv`,
    and has to be converted by hand.

    >>> import numpy as np
    >>> from funcnets import interop, tree
    >>> variables = {"params": {"Conv_0": {"kernel": np.zeros((3, 3, 1, 8), "float32")}}}
    >>> params, state = interop.from_flax(variables, rename={"Conv_0": "conv"})
    >>> {name: tuple(leaf.shape) for name, leaf in tree.flatten_named(params).items()}
    {'conv.weight': (8, 1, 3, 3)}
    """
    leaves: dict[str, Tensor] = {}
    pending = dict(flattened or {})
    for name, leaf in _named_leaves(variables, rename):
        shape = None
        if name.endswith("weight") and leaf.ndim == 2:
            shape = pending.pop(_part(renamed(name, rename) or ""), None)
        leaves[name] = _from_channels_last(name, leaf, shape)
    _check_used(pending)
    return from_state_dict(leaves, like=like, rename=rename)


def to_flax(
    params: Params,
    state: State,
    *,
    rename: Rename | None = None,
    flattened: Flattened | None = None,
) -> dict[str, Any]:
    """Return the variables of a `flax.linen` module, as NumPy arrays: the inverse of `from_flax`.

    Args:
        params, state: those of the network.
        rename: from the names of funcnets' parts to those of Flax, such as `{"conv1": "Conv_0"}`.
        flattened: as that of `from_flax`.

    Raises InteropError for a state that is not a batch norm's, such as a counter, for a weight of
    dimensions that Flax has none of, and for a shape in `flattened` that doesn't fit.

    >>> import torch
    >>> from funcnets import interop
    >>> variables = interop.to_flax({"fc": {"weight": torch.zeros(3, 2)}}, {})
    >>> variables["params"]["fc"]["kernel"].shape
    (2, 3)
    """
    pending = dict(flattened or {})
    collections: dict[str, dict[str, Any]] = {"params": {}}
    for name, leaf in to_state_dict(params, state).items():
        collection, last = _flax_name(name, leaf)
        shape = pending.pop(_part(name), None) if leaf.ndim == 2 else None
        new_name = renamed(_joined(_part(name), last), rename)
        if new_name is not None:
            leaf = _to_channels_last(name, leaf, shape)
            collections.setdefault(collection, {})[new_name] = _array(leaf)
    _check_used(pending)
    return {name: tree.unflatten_named(leaves) for name, leaves in collections.items()}


def _part(name: str) -> str:
    return name.rpartition(".")[0]


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _named_leaves(
    variables: Mapping[str, Any], rename: Rename | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the leaves that `rename` doesn't leave out, under Flax's part and our leaf name."""
    for collection, values in variables.items():
        if collection not in _COLLECTIONS:
            raise InteropError(
                f"{collection}: is no collection of variables that a network has; expected "
                f"{' and '.join(_COLLECTIONS)}, as in the result of `module.init`"
            )
        known = _COLLECTIONS[collection]
        for part, last, leaf in _nested(values):
            name = _joined(part, known.get(last, last))
            if renamed(name, rename) is None:
                continue
            if last not in known:
                raise InteropError(
                    f"{_joined(part, last)}: expected one of {', '.join(known)}, the leaves of "
                    "convolutions, dense layers and norms; convert it by hand, and give `rename` "
                    f"a function that returns None for {_joined(part, last)}"
                )
            yield name, _tensor(name, leaf)


def _nested(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(values, Mapping):
        yield ".".join(path[:-1]), path[-1], values
        return
    for name, value in values.items():
        yield from _nested(value, (*path, name))


def _tensor(name: str, leaf: Any) -> Tensor:
    array = np.array(leaf)
    if array.dtype.name == "bfloat16":  # which NumPy itself, and so from_numpy, doesn't have
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiu":
        raise InteropError(f"{name}: got {type(leaf).__name__}, expected an array of numbers")
    return torch.from_numpy(array)


def _array(leaf: Tensor) -> Any:
    leaf = leaf.contiguous().cpu()
    if leaf.dtype != torch.bfloat16:
        return leaf.numpy()
    bfloat16 = _extras.require("ml_dtypes", "bench-jax", "a bfloat16 array").bfloat16
    return leaf.view(torch.int16).numpy().view(bfloat16)


def _flax_name(name: str, leaf: Tensor) -> tuple[str, str]:
    """Return the collection and the leaf name that Flax has for one of ours."""
    last = name.rpartition(".")[2]
    if last in _STATISTICS:
        return "batch_stats", _STATISTICS[last]
    if last == "weight":
        return "params", "kernel" if leaf.ndim > 1 else "scale"
    if last == "bias" and leaf.ndim == 1:
        return "params", last
    raise InteropError(
        f"{name}: flax.linen has no counterpart of this leaf of shape {tuple(leaf.shape)}; "
        "expected those of convolutions, linear layers and norms of channels"
    )


def _from_channels_last(name: str, leaf: Tensor, shape: Sequence[int] | None) -> Tensor:
    if leaf.ndim < 2:
        return leaf
    weight = leaf.permute(-1, -2, *range(leaf.ndim - 2))
    if shape is not None:
        channels, *sides = _fitting(name, weight, shape)
        weight = weight.reshape(len(weight), *sides, channels).movedim(-1, 1).flatten(1)
    return weight.contiguous()


def _to_channels_last(name: str, leaf: Tensor, shape: Sequence[int] | None) -> Tensor:
    if leaf.ndim < 2:
        return leaf
    if shape is not None:
        leaf = leaf.reshape(len(leaf), *_fitting(name, leaf, shape)).movedim(1, -1).flatten(1)
    return leaf.permute(*range(2, leaf.ndim), 1, 0)


def _fitting(name: str, weight: Tensor, shape: Sequence[int]) -> Sequence[int]:
    if torch.Size(shape).numel() != weight.shape[1]:
        raise InteropError(
            f"{name}: takes {weight.shape[1]} features; `flattened` gives it {tuple(shape)}, "
            f"expected (C, H, W) with C * H * W = {weight.shape[1]}"
        )
    return shape


def _check_used(pending: Mapping[str, Sequence[int]]) -> None:
    if pending:
        raise InteropError(
            f"flattened: the network has no linear layer {tree.listed([*pending])}; expected "
            "names of linear layers in funcnets"
        )
