"""What a network computes on its way: activations by path, and gradients with respect to them.

Values leave with the new statistics and shifts come in with the parameters, under a name that no
part has: so they go through `grad`, `vmap`, `jit` and `remat` as every other leaf does.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from funcnets import tree
from funcnets.core import Apply, Layer, LayerError, Params, State, rewrite, wrap
from funcnets.transforms.paths import match

# The name of a layer's own leaf, beside those of its parts: `conv1.` is that of `conv1`.
_OWN = ""


class Captured(NamedTuple):
    """What a network gave, and what some of its parts did."""

    output: Tensor
    state: State  # the new one, as `apply` gives it
    activations: dict[str, Tensor]  # the parts' outputs, by path, in the network's order


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
    """`net.apply` on these arguments, and the outputs of the parts that `paths` name.

    The gradient of anything with respect to an activation is its gradient with respect to a shift
    of zeros there:

        def score(shifts):
            return capture(net, params, state, x, paths=shifts, shifts=shifts).output[:, 3].sum()

        activations = capture(net, params, state, x, paths=["stage4"]).activations
        gradients = torch.func.grad(score)(tree.map(torch.zeros_like, activations))

    Args:
        net: the network; it and its parameters stay as they are.
        params, state, x, train, key: as `net.apply` takes them.
        paths: dotted paths of parts, or `fnmatch` patterns such as `stage*.block1`.
        shifts: by path, what is added to the output of the part, and of its shape.

    Raises ValueError for a path that isn't there, and names the nearest, TypeError for a single
    string as `paths`, LayerError for a shift of another shape than the activation.
    """
    if isinstance(paths, str):
        raise TypeError(f"paths is the string {paths!r}; expected a list, as in paths=[{paths!r}]")
    wanted, shifts = match(net, paths), dict(shifts or {})
    observed = {*wanted, *match(net, shifts)}
    watched = rewrite(net, lambda name, part: wrap(part, _watched) if name in observed else part)
    shifted = tree.flatten_named(params) | {_own(path): shift for path, shift in shifts.items()}
    y, new_state = watched.apply(tree.unflatten_named(shifted), state, x, train=train, key=key)
    named = tree.flatten_named(new_state)
    activations = {path: named[_own(path)] for path in wanted}
    kept = {name: leaf for name, leaf in named.items() if not name.endswith(_own(""))}
    return Captured(y, tree.unflatten_named(kept), activations)


def _own(path: str) -> str:
    return f"{path}.{_OWN}"


def _watched(inner: Apply) -> Apply:
    """The same, but that it adds its own leaf to its output, and gives that among its state."""

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        params = dict(params)
        shift = params.pop(_OWN, None)
        y, state = inner(params, state, x, train=train, key=key)
        if shift is not None:
            if shift.shape != y.shape:
                raise LayerError(
                    f"capture: got a shift of shape {tuple(shift.shape)}, expected "
                    f"{tuple(y.shape)}, that of the activation"
                )
            y = y + shift
        return y, {**state, _OWN: y}

    return apply
