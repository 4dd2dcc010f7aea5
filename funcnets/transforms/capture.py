"""Activations of parts by path, and gradients with respect to them.

Activations leave a part in its new state and shifts enter in its parameters, under a name that no
leaf has.  So they pass `grad`, `vmap`, `jit` and `remat` as all leaves do.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from funcnets import tree
from funcnets.core import Apply, Layer, LayerError, Params, State, rewrite, wrap
from funcnets.transforms.paths import match_parts

# Name of the extra leaf of a captured part, so that its path is `conv1.` for the part `conv1`.
_EXTRA = ""


class Captured(NamedTuple):
    """Output of a network, its new state, and the outputs of some of its parts."""

    output: Tensor
    state: State  # new state, as `apply` returns it
    activations: dict[str, Tensor]  # outputs of parts by path, in the order of the network


def capture(
    net: Layer,
    params: Params,
    state: State,
    x: Tensor,
    *,
    paths: Iterable[str],
    shifts: Mapping[str, Tensor] | None = None,
    train: bool = False,
    key: Tensor | None = None,
) -> Captured:
    """Return the output of `net.apply` and the outputs of the parts at `paths`.

    The gradient with respect to an activation is the gradient with respect to a shift of zeros.

    Args:
        net: network.
        params, state, x, train, key: arguments of `net.apply`.
        paths: dotted paths of parts, or `fnmatch` patterns such as `stage*.block1`.
        shifts: tensor by path that is added to the output of this part, and has its shape.

    Raises ValueError for a path that no part has, with the nearest ones; TypeError if `paths` is a
    string; LayerError for a shift of another shape than the activation.

    >>> import torch
    >>> from funcnets import layers, sequential, transforms
    >>> net = sequential(double=layers.relu(), last=layers.tanh())
    >>> x = torch.tensor([[-1.0, 0.0]])
    >>> transforms.capture(net, {}, {}, x, paths=["double"]).activations
    {'double': tensor([[0., 0.]])}
    >>> def score(shifts):
    ...     return transforms.capture(net, {}, {}, x, paths=shifts, shifts=shifts).output.sum()
    >>> torch.func.grad(score)({"double": torch.zeros(1, 2)})
    {'double': tensor([[1., 1.]])}
    """
    if isinstance(paths, str):
        raise TypeError(f"paths is the string {paths!r}; expected a list, as in paths=[{paths!r}]")
    wanted, shifts = match_parts(net, paths), dict(shifts or {})
    captured = {*wanted, *match_parts(net, shifts)}
    capturing = rewrite(net, lambda name, part: wrap(part, _captured) if name in captured else part)
    with_shifts = tree.flatten_named(params)
    with_shifts |= {_extra(path): shift for path, shift in shifts.items()}
    y, new_state = capturing.apply(
        tree.unflatten_named(with_shifts), state, x, train=train, key=key
    )
    named = tree.flatten_named(new_state)
    activations = {path: named[_extra(path)] for path in wanted}
    kept = {name: leaf for name, leaf in named.items() if not name.endswith(_extra(""))}
    return Captured(y, tree.unflatten_named(kept), activations)


def _extra(path: str) -> str:
    return f"{path}.{_EXTRA}"


def _captured(inner: Apply) -> Apply:
    """Return `inner` plus the extra leaf of params, with its output as the extra leaf of state."""

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        params = dict(params)
        shift = params.pop(_EXTRA, None)
        y, state = inner(params, state, x, train=train, key=key)
        if shift is not None:
            if shift.shape != y.shape:
                raise LayerError(
                    f"capture: got a shift of shape {tuple(shift.shape)}, expected "
                    f"{tuple(y.shape)}, that of the activation"
                )
            y = y + shift
        return y, {**state, _EXTRA: y}

    return apply
