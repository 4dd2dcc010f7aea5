"""Private copies of the modules of a tree, with other leaves in the places of their own.

A copy has the class and the attributes of its module, and its own tables of parameters, buffers and
children.  It can run in either mode and be written to, while the module itself never changes.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from funcnets._torch import BUFFERS, module_buffers
from funcnets.core import LayerError

_MISSING = object()


class Structure:
    """Modules of a tree and the names of their leaves, which are on the meta device.

    Attributes:
        root: the module that has the others below it; it is never run.
        inspected: modes (True: training) in which a call was inspected.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root, self.inspected = root, set[bool]()
        self._originals: list[weakref.ref[Tensor]] = []

    @classmethod
    def of(cls, module: nn.Module) -> "Structure":
        """Return the structure of `module`, which later changes of the module don't reach."""
        leaves = {id(leaf): torch.empty_like(leaf, device="meta") for leaf in all_leaves(module)}
        structure = cls(ModuleCopies(module, leaves).modules[id(module)])
        structure._originals = [weakref.ref(leaf) for leaf in all_leaves(module)]
        return structure

    @cached_property
    def params(self) -> dict[str, Tensor]:
        """Parameters, each by its first name."""
        return dict(self.root.named_parameters())

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers, each by its first name."""
        return dict(self.root.named_buffers())

    def originals(self) -> list[Tensor]:
        """Return the leaves of the module that this is the structure of, if they still exist."""
        return [leaf for reference in self._originals if (leaf := reference()) is not None]

    def constants(self) -> list[tuple[str, Tensor]]:
        """Return the tensors in attributes that are neither parameters nor buffers, by name."""
        return [
            (_join(path, name), value)
            for path, module in self.root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]

    def copy(self, values: Mapping[str, Tensor], set_attributes: "SetAttributes") -> "ModuleCopies":
        """Return copies of the modules with `values`, by first name, as leaves."""
        leaves = {id(leaf): values[name] for name, leaf in (self.params | self.buffers).items()}
        return ModuleCopies(self.root, leaves, set_attributes)


def all_leaves(module: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers of `module`, each once."""
    yield from module.parameters()
    yield from module.buffers()


SetAttributes = Callable[[str, nn.Module], dict[str, Any]]
"""Function from path and module to attributes that its copy has in place of its own."""


class ModuleCopies:
    """Copies of `root` and the modules below it, by the id of each.

    `leaves` has the tensors that stand in the places of parameters and buffers, by the id of each.
    Lists and dicts in attributes are copied too, with copies of modules and leaves in them.
    """

    def __init__(
        self,
        root: nn.Module,
        leaves: Mapping[int, Tensor],
        set_attributes: SetAttributes = lambda path, module: {},
    ) -> None:
        self._paths = dict(root.named_modules())
        self.modules: dict[int, nn.Module] = {
            id(module): object.__new__(type(module)) for module in self._paths.values()
        }
        self._new = {**leaves, **self.modules}
        self._set = {
            id(module): set_attributes(path, module) for path, module in self._paths.items()
        }
        for module in self._paths.values():
            attributes = _replaced(vars(module), self._new) | self._set[id(module)]
            vars(self.modules[id(module)]).update(attributes)

    def changed(self) -> list[str]:
        """Return the dotted names of the attributes, other than buffers, that a call changed."""
        return [
            _join(path, name)
            for path, module in self._paths.items()
            for name in self._changed(module)
        ]

    def _changed(self, module: nn.Module) -> Iterator[str]:
        before, after = vars(module) | self._set[id(module)], vars(self.modules[id(module)])
        for name in before.keys() | after.keys():
            if name == BUFFERS:
                same = _present(before[name]) == _present(after[name])
            else:
                same = self._is_same(before.get(name, _MISSING), after.get(name, _MISSING))
            if not same:
                yield name

    def _is_same(self, before: Any, after: Any) -> bool:
        """Return True if `after` is what stands in the place of `before`, or all in it is."""
        kind = type(before)
        if kind not in _CONTAINERS:
            return self._new.get(id(before), before) is after
        if type(after) is not kind or len(after) != len(before):
            return False
        if kind in (dict, OrderedDict):
            return [*before] == [*after] and all(
                map(self._is_same, before.values(), after.values())
            )
        return bool(before == after if kind is set else all(map(self._is_same, before, after)))

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers of the copies after a call, each by its first name.

        Raises LayerError where the names of one buffer have different values.
        """
        first: dict[int, str] = {}
        found: dict[str, Tensor] = {}
        for path, module in self._paths.items():
            values = module_buffers(self.modules[id(module)])
            for name, old in module_buffers(module).items():
                value = values[name]
                if old is None or value is None:
                    continue
                own = _join(path, name)
                one = first.setdefault(id(old), own)
                if found.setdefault(one, value) is not value:
                    raise LayerError(
                        f"lift: forward assigns to only one of `{one}` and `{own}`, names of the "
                        "same buffer: assign to both, or write in place"
                    )
        return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def get_leaf(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer of a copy by its dotted name."""
    path, _, last = name.rpartition(".")
    leaf: Tensor = getattr(module.get_submodule(path), last)
    return leaf


def set_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Assign `value` to the buffer of a copy with this dotted name."""
    path, _, last = name.rpartition(".")
    module_buffers(module.get_submodule(path))[last] = value


def _present(table: Mapping[str, Any]) -> set[str]:
    return {name for name, value in table.items() if value is not None}


_CONTAINERS = (dict, OrderedDict, list, tuple, set)


def _replaced(value: Any, new: Mapping[int, Any]) -> Any:
    """Return a copy of the containers in `value`, with `new[id(old)]` in the place of `old`."""
    kind = type(value)
    if kind not in _CONTAINERS:
        return new.get(id(value), value)
    if kind in (dict, OrderedDict):
        return kind((key, _replaced(item, new)) for key, item in value.items())
    return kind(_replaced(item, new) for item in value)


def objects_in(value: Any) -> Iterator[Any]:
    """Yield what is in `value`, if that is a container, or in containers in it; else `value`."""
    if isinstance(value, dict | list | tuple | set):
        for item in value.values() if isinstance(value, dict) else value:
            yield from objects_in(item)
    else:
        yield value
