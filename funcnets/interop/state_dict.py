"""Conversion of parameters and state from and to `torch.nn`: state dicts and modules.

A leaf's dotted name is its name in a state dict: `params["stem"]["conv"]["weight"]` is
`stem.conv.weight`.  Every tensor is copied, so neither side sees later changes of the other.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from funcnets import tree
from funcnets.core import Layer, Params, State

Rename = Callable[[str], str | None] | Mapping[str, str]
"""A function from names to names, or a mapping from names of parts to names of parts.

An entry for which a function returns None is left out.  In a mapping the name of a part stands for
all names below it (`{"features.0": "conv1"}`), and the longest name that matches counts.
"""

Values = tuple[Params, State]

_STATE = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # torch's batch norm counts its calls; funcnets doesn't need it


class InteropError(ValueError):
    """A state dict that doesn't fit a network, with the entries that don't."""


def from_state_dict(
    state_dict: Mapping[str, Tensor], *, like: Values | None = None, rename: Rename | None = None
) -> tuple[Params, State]:
    """Return `(params, state)` with the values of a state dict, in its dtypes and on its devices.

    Args:
        state_dict: tensors by dotted name; entries `num_batches_tracked` are ignored.
        like: `(params, state)` whose names and shapes the result must have, such as
            `net.init(key, x)`; meta tensors will do.  If None, any names are accepted, and those
            that end in `running_mean` or `running_var` are state.
        rename: from the names of the state dict to those of the result; see `Rename`.

    Raises InteropError with the missing, unexpected and wrongly shaped entries, ten of each.

    >>> import torch
    >>> from funcnets import interop, layers, random
    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> like = layers.linear(2).init(random.key(0), torch.ones(1, 3))
    >>> params, state = interop.from_state_dict(
    ...     module.state_dict(), like=like, rename=lambda name: name.removeprefix("0.")
    ... )
    >>> bool((params["weight"] == module[0].weight).all())
    True
    """
    if like is not None:
        return _convert(state_dict, like, rename)
    trees: list[dict[str, Tensor]] = [{}, {}]
    entries = [name for name in state_dict if _last(name) != _COUNTER]
    for name, leaf in _by_new_name(state_dict, entries, rename).items():
        trees[_last(name) in _STATE][name] = _copy(leaf)
    return tree.unflatten_named(trees[0]), tree.unflatten_named(trees[1])


def from_module(
    module: nn.Module, *, like: Values | None = None, rename: Rename | None = None
) -> tuple[Params, State]:
    """Return `(params, state)` with the values of a module.

    Without `like`, they are what `lift(module)` takes: all parameters and all buffers, each by its
    first name.  With it, arguments and errors are those of `from_state_dict`.

    >>> import torch
    >>> from funcnets import interop, tree
    >>> params, state = interop.from_module(torch.nn.BatchNorm2d(4))
    >>> tree.names(params), tree.names(state)
    (['bias', 'weight'], ['num_batches_tracked', 'running_mean', 'running_var'])
    """
    named = dict(module.named_parameters()), dict(module.named_buffers())
    if like is None:
        params, state = (
            tree.unflatten_named(
                {
                    name: _copy(leaf)
                    for name, leaf in _by_new_name(leaves, [*leaves], rename).items()
                }
            )
            for leaves in named
        )
        return params, state
    return from_state_dict(module.state_dict(), like=like, rename=rename)


class Transplanted(NamedTuple):
    """Parameters and state of a network, some of them copied from another network.

    Attributes:
        params, state: of the target, copied where the source had a leaf that fits.
        taken: names of the leaves that were copied from the source.
        new: names of the target's leaves that keep their own values.
        left: names of the source's leaves that the target has no place for.
    """

    params: Params
    state: State
    taken: list[str]
    new: list[str]
    left: list[str]


def transplant(source: Values, like: Values, *, rename: Rename | None = None) -> Transplanted:
    """Return the leaves of `like`, replaced by the source's where name and shape are the same.

    It gives a trained network another head, for fine-tuning: leaves that the source doesn't have,
    or has in another shape, keep the values of `like` and are listed as `new`.  Copied leaves have
    the source's dtype and device.

    Args:
        source: `(params, state)` of the trained network.
        like: `(params, state)` of the new network, such as `net.init(key, x)`; not changed.
        rename: from the source's names to those of `like`; see `Rename`.

    Raises InteropError if no parameter fits, or if `rename` gives two entries one name.

    >>> import torch
    >>> from funcnets import interop, layers, random, sequential
    >>> def network(classes):
    ...     return sequential(body=layers.linear(4), head=layers.linear(classes))
    >>> x = torch.ones(1, 3)
    >>> trained = network(10).init(random.key(0), x)
    >>> result = interop.transplant(trained, network(2).init(random.key(1), x))
    >>> result.taken, result.new
    (['body.bias', 'body.weight'], ['head.bias', 'head.weight'])
    """
    flat = tree.flatten_named(source[0]) | tree.flatten_named(source[1])
    found = _by_new_name(flat, list(flat), rename)
    named = tree.flatten_named(like[0]) | tree.flatten_named(like[1])
    taken = [name for name, leaf in named.items() if _fits(found.get(name), leaf)]
    if not set(taken) & set(tree.names(like[0])):
        raise InteropError(
            "no parameter of the source has the name and shape of one of the network: it has "
            f"{tree.listed(list(found))}; expected some of {tree.listed(list(named))}. "
            "If only the names differ, give `rename`"
        )

    def chosen(name: str, own: Tensor) -> Tensor:
        return _copy(found[name]) if name in taken else own

    params, state = (tree.map_named(chosen, part) for part in like)
    new, left = ([name for name in names if name not in taken] for names in (named, found))
    return Transplanted(params, state, taken, new, left)


def _fits(found: Tensor | None, leaf: Tensor) -> bool:
    return found is not None and found.shape == leaf.shape


def to_state_dict(params: Params, state: State) -> dict[str, Tensor]:
    """Return copies of all leaves by dotted name.

    `torch.nn.Module.load_state_dict` takes the result, also with `strict=True`: a batch norm
    without an entry `num_batches_tracked` keeps its own.

    Raises InteropError if a name is in both `params` and `state`.

    >>> import torch
    >>> from funcnets import interop
    >>> interop.to_state_dict({"fc": {"bias": torch.zeros(2)}}, {})
    {'fc.bias': tensor([0., 0.])}
    """
    named, state_named = tree.flatten_named(params), tree.flatten_named(state)
    if both := [name for name in named if name in state_named]:
        raise InteropError(
            f"{tree.listed(both)}: a leaf of params and of state; give one of the two another name"
        )
    return {name: _copy(leaf) for name, leaf in (named | state_named).items()}


def to_module(net: Layer, params: Params, state: State) -> "FunctionModule":
    """Return `net` as a `torch.nn.Module`, with copies of `params` and `state`.

    See `FunctionModule`.  Raises InteropError for a part of the network that has the name of an
    attribute of `torch.nn.Module`, such as `train`.

    >>> import torch
    >>> from funcnets import interop, layers, random
    >>> net = layers.linear(2)
    >>> module = interop.to_module(net, *net.init(random.key(0), torch.ones(1, 3)))
    >>> module(torch.ones(5, 3)).shape, [name for name, _ in module.named_parameters()]
    (torch.Size([5, 2]), ['bias', 'weight'])
    """
    return FunctionModule(net, params, state)


class FunctionModule(nn.Module):
    """A network as a module: params are its parameters, state its buffers, by the same names.

    Unlike the network, the module changes itself: in training, a call writes the new state into
    the buffers, as `torch.nn.BatchNorm2d` does.  `from_module` gives the values back.  A module
    can be copied (`copy.deepcopy`), and pickled if its network can be (see `models.picklable`); to
    keep its values, save `module.state_dict()`.
    """

    def __init__(self, net: Layer, params: Params, state: State) -> None:
        super().__init__()
        self._net = net
        self._param_names, self._state_names = tree.names(params), tree.names(state)
        for name, value in to_state_dict(params, state).items():
            module, leaf = _submodule(self, name)
            if name in self._state_names:
                module.register_buffer(leaf, value)
            else:
                module.register_parameter(leaf, nn.Parameter(value))

    def _values(self, names: list[str]) -> dict[str, Any]:
        return tree.unflatten_named(
            {name: reduce(getattr, name.split("."), self) for name in names}
        )

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """Return the network's output for `x`, in the mode that `Module.train` has set.

        A stochastic network in training that is given no `key` draws one from torch's global
        generator, as `torch.nn.Dropout` draws its mask: `torch.manual_seed` repeats it.
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


def _submodule(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the submodule for the leaf `name`, created if need be, and the leaf's last name."""
    *parts, leaf = name.split(".")
    for part in parts:
        if part not in dict(module.named_children()):
            if hasattr(module, part):
                raise InteropError(
                    f"{name}: `{part}` is an attribute of every torch.nn.Module: rename this part"
                )
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module, leaf


def renamed(name: str, rename: Rename | None) -> str | None:
    """Return the new name of a leaf or a part, None for one that is left out."""
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
    new_names = {name: renamed(name, rename) for name in entries}
    ours = {name: new for name, new in new_names.items() if new is not None}
    found = {new: state_dict[name] for name, new in ours.items()}
    if len(found) < len(ours):
        twice = [
            f"{name} as {new}" for name, new in ours.items() if [*ours.values()].count(new) > 1
        ]
        raise InteropError(f"`rename` gives one name to several entries: {tree.listed(twice)}")
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _convert(
    state_dict: Mapping[str, Tensor], like: Values, rename: Rename | None
) -> tuple[Params, State]:
    """Return trees like those of `like`, with the values of a state dict."""
    expected = tree.flatten_named(like[0]) | tree.flatten_named(like[1])
    entries = [
        name for name in state_dict if _last(name) != _COUNTER or renamed(name, rename) in expected
    ]
    found = _by_new_name(state_dict, entries, rename)
    _check_entries(found, expected)
    params, state = (tree.map_named(lambda name, _: _copy(found[name]), part) for part in like)
    return params, state


def _check_entries(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise InteropError unless `found` has the names and shapes of `expected`."""
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
            f"{len(names)} {problem}: {tree.listed(names)}"
            for problem, names in problems.items()
            if names
        )
        raise InteropError(
            f"the state dict isn't this network's: {listed}. If only the names differ, give "
            "`rename`, from the names of the state dict to those of the network"
        )
