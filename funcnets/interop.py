"""Parameters and state from and to `torch.nn`: state dicts and modules, both ways.

A leaf's dotted name is its name in a state dict: `params["stem"]["conv"]["weight"]` is
`stem.conv.weight`.  Every tensor is copied, so neither side sees what the other does with it.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from funcnets import tree
from funcnets.core import Layer, Params, State

Rename = Callable[[str], str] | Mapping[str, str]
Like = tuple[Params, State]

_STATE = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # torch's batch norm counts its calls; nothing here reads it


class InteropError(ValueError):
    """A state dict that doesn't fit: what is missing, unexpected or of the wrong shape."""


def from_state_dict(
    state_dict: Mapping[str, Tensor], *, like: Like | None = None, rename: Rename | None = None
) -> tuple[Params, State]:
    """`(params, state)` with the values of a state dict, in its dtypes and on its devices.

    Args:
        state_dict: tensors by dotted name; `num_batches_tracked` entries are left out.
        like: `(params, state)` whose names and shapes the result must have, such as
            `net.init(key, x)`; meta tensors will do.  None: any names, of which those that end
            in `running_mean` or `running_var` are state.
        rename: from its names to ours: a function, or a mapping in which the name of a part
            stands for all below it (`{"features.0": "conv1"}`) and the longest name counts.

    Raises InteropError with the missing, unexpected and wrongly shaped entries, ten of each.
    """
    return _read(state_dict, lambda name: name.split(".")[-1] in _STATE, like, rename)


def from_module(
    module: nn.Module, *, like: Like | None = None, rename: Rename | None = None
) -> tuple[Params, State]:
    """`(params, state)` with the values of a module's state dict, as `from_state_dict` does.

    Without `like`, the module's parameters are params and its buffers state.
    """
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return _read(module.state_dict(), buffers.__contains__, like, rename)


class Transplanted(NamedTuple):
    """A network's leaves, some of them taken from another's."""

    params: Params
    state: State
    taken: list[str]  # names of the leaves that came from the source
    new: list[str]  # of those that keep their own values
    left: list[str]  # of the source's leaves that have no place here


def transplant(source: Like, like: Like, *, rename: Rename | None = None) -> Transplanted:
    """The leaves `(params, state)` of `like`, with the source's where name and shape are the same.

    So a trained network goes into another head: what differs keeps the values of `like`, such as
    `net.init(key, x)`, and is listed.  Taken leaves are copies, in the source's dtype.

    Args:
        source: `(params, state)` of the trained network.
        like: `(params, state)` of the network to be; not changed.
        rename: from the source's names, as `from_state_dict` takes it.

    Raises InteropError where no leaf of the parameters fits, or `rename` gives a name twice.
    """
    flat = tree.flatten_named(source[0]) | tree.flatten_named(source[1])
    found = _by_new_name(flat, list(flat), rename)
    named = tree.flatten_named(like[0]) | tree.flatten_named(like[1])
    taken = [name for name, leaf in named.items() if _fits(found.get(name), leaf)]
    if not set(taken) & set(tree.names(like[0])):
        raise InteropError(
            f"no parameter of the source has the name and shape of one here: it has "
            f"{tree.listed(list(found))}; expected some of {tree.listed(list(named))}. "
            "Give `rename`?"
        )

    def chosen(name: str, own: Tensor) -> Tensor:
        return _copy(found[name]) if name in taken else own

    params, state = (tree.map_named(chosen, part) for part in like)
    new, left = ([name for name in names if name not in taken] for names in (named, found))
    return Transplanted(params, state, taken, new, left)


def _fits(found: Tensor | None, leaf: Tensor) -> bool:
    return found is not None and found.shape == leaf.shape


def to_state_dict(params: Params, state: State) -> dict[str, Tensor]:
    """The leaves of both by dotted name, copied.

    `torch.nn.Module.load_state_dict` takes it, though strict: a batch norm without an entry for
    its `num_batches_tracked` keeps the number that it has.

    Raises InteropError if a name is in both.
    """
    named, state_named = tree.flatten_named(params), tree.flatten_named(state)
    if both := [name for name in named if name in state_named]:
        raise InteropError(
            f"{tree.listed(both)}: in params and in state; give one of the two another name"
        )
    return {name: _copy(leaf) for name, leaf in (named | state_named).items()}


def to_module(net: Layer, params: Params, state: State) -> "FunctionModule":
    """`net` as a `torch.nn.Module` with copies of `params` and `state`; see `FunctionModule`.

    Raises InteropError for a part that has the name of an attribute of `torch.nn.Module`.
    """
    return FunctionModule(net, params, state)


class FunctionModule(nn.Module):
    """A network as a module: params are its parameters, state its buffers, by the same names.

    Other than the network, the module changes itself: in training, a call writes the new state
    into the buffers, as `torch.nn.BatchNorm2d` does.  `from_module` gives the values back.  A copy
    (`copy.deepcopy`) works; pickling doesn't, as a network is made of functions: save the
    `state_dict`.
    """

    def __init__(self, net: Layer, params: Params, state: State) -> None:
        super().__init__()
        self._net = net
        self._param_names, self._state_names = tree.names(params), tree.names(state)
        for name, value in to_state_dict(params, state).items():
            module, leaf = _holder(self, name)
            if name in self._state_names:
                module.register_buffer(leaf, value)
            else:
                module.register_parameter(leaf, nn.Parameter(value))

    def _values(self, names: list[str]) -> dict[str, Any]:
        return tree.unflatten_named(
            {name: reduce(getattr, name.split("."), self) for name in names}
        )

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """The network's output for `x`, in the mode that `train()` or `eval()` has set.

        A stochastic network in training that gets no `key` takes one from torch's global generator,
        as `torch.nn.Dropout` takes its mask from there: `torch.manual_seed` repeats it.
        """
        if key is None and self.training and self._net.stochastic:
            key = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=x.device)
        params, state = self._values(self._param_names), self._values(self._state_names)
        y, new_state = self._net.apply(params, state, x, train=self.training, key=key)
        if self.training:
            with torch.no_grad():
                tree.map(lambda old, new: old.copy_(new), state, new_state)
        return y


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone()


def _holder(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule, made if need be, to which the leaf `name` belongs, and its last name."""
    *parts, leaf = name.split(".")
    for part in parts:
        if part not in module._modules:
            if hasattr(module, part):
                raise InteropError(f"{name}: a module has a `{part}` of its own: rename this part")
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module, leaf


def _renamed(name: str, rename: Rename | None) -> str:
    if rename is None:
        return name
    if callable(rename):
        return rename(name)
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (part := ".".join(parts[:end])) in rename:
            return ".".join([rename[part], *parts[end:]])
    return name


def _by_new_name(
    state_dict: Mapping[str, Tensor], entries: list[str], rename: Rename | None
) -> dict[str, Tensor]:
    ours = {name: _renamed(name, rename) for name in entries}
    found = {ours[name]: state_dict[name] for name in entries}
    if len(found) < len(ours):
        twice = [
            f"{name} as {new}" for name, new in ours.items() if [*ours.values()].count(new) > 1
        ]
        raise InteropError(f"`rename` gives one name to several entries: {tree.listed(twice)}")
    return found


def _read(
    state_dict: Mapping[str, Tensor],
    is_state: Callable[[str], bool],
    like: Like | None,
    rename: Rename | None,
) -> tuple[Params, State]:
    """Both trees; `is_state` sorts the state dict's own names, where there is no `like`."""
    entries = [name for name in state_dict if name.split(".")[-1] != _COUNTER]
    found = _by_new_name(state_dict, entries, rename)
    if like is None:
        parts: list[dict[str, Tensor]] = [{}, {}]
        for name in entries:
            parts[is_state(name)][_renamed(name, rename)] = _copy(state_dict[name])
        return tree.unflatten_named(parts[0]), tree.unflatten_named(parts[1])
    _check(found, tree.flatten_named(like[0]) | tree.flatten_named(like[1]))
    params, state = (tree.map_named(lambda name, _: _copy(found[name]), part) for part in like)
    return params, state


def _check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """InteropError unless `found` has the names and shapes of `expected`."""
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of the wrong shape": [
            f"{name} {tuple(found[name].shape)} (expected {tuple(leaf.shape)})"
            for name, leaf in expected.items()
            if name in found and found[name].shape != leaf.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(at)} {what}: {tree.listed(at)}" for what, at in problems.items() if at
        )
        raise InteropError(
            f"the state dict isn't this network's: {listed}. Names differ alone? Give `rename`, "
            "from its names to the network's"
        )
