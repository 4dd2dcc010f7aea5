"""The pure `apply` of a lifted module: each call runs private copies of its modules.

While they run, random functions draw from keys, and batch norms, dropouts and all that a transform
replaced run as parts of the layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from funcnets import random, tree
from funcnets._torch import module_buffers, version_of
from funcnets.core import Layer, LayerError, Params, Parts, State, check_input
from funcnets.interop.inspection import Inspection
from funcnets.interop.keyed_draws import DRAWS, WITHOUT_STAND_IN, is_random, stand_in
from funcnets.interop.module_copy import Structure, get_leaf, set_buffer
from funcnets.interop.stand_ins import STAND_INS
from funcnets.layers import BatchStatistics


class Arguments(NamedTuple):
    """Input of a replaced module that isn't called with exactly one argument."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Keys:
    """Keys of what happens in a module: its i-th draw or call of a child has `fold_in(key, i)`."""

    def __init__(self, make_key: Callable[[], Tensor]) -> None:
        self._make_key, self._count = make_key, 0

    @cached_property
    def key(self) -> Tensor:
        """The key itself, made only where it is used."""
        return self._make_key()

    def next(self) -> "Keys":
        """Return the keys of the next draw or call."""
        index = self._count
        self._count += 1
        return Keys(lambda: random.fold_in(self.key, index))


class ModuleApply:
    """Pure function `apply(params, state, x, *, train=False, key=None)` of a module.

    A part of the layer whose own `apply` isn't a `ModuleApply` runs in the place of its module:
    batch norms, dropouts, and all that a transform replaced.  Unnamed parts are the batch norm of
    a module that calls `F.batch_norm`, and a random layer that stands for draws in its `forward`.

    Attributes:
        structure: the module and the names of its leaves.
        parts: the parts of the layer.
        is_root: False for a part of a lifted module: its hooks and inspections are its parent's.
    """

    def __init__(self, structure: Structure, parts: Parts, *, is_root: bool) -> None:
        self.structure, self.parts, self.is_root = structure, parts, is_root

    def __call__(
        self,
        params: Params,
        state: State,
        x: Any,
        *,
        train: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Any, State]:
        """Return the module's output, and its buffers after the call."""
        return _Call(self, params, state, train, key).run(x)

    @cached_property
    def replaced(self) -> dict[str, Layer]:
        """Parts that run in the place of a module, by path."""
        return {path: part for path, name, part in _replacing(self.parts) if name is not None}

    @cached_property
    def norms(self) -> dict[str, Layer]:
        """Batch norms by the path of the module that calls `F.batch_norm`."""
        return {path: part for path, part in self._unnamed() if part.tag(BatchStatistics)}

    @cached_property
    def draws(self) -> dict[str, Layer]:
        """Random layers by the path of the module that draws in `forward`."""
        return {path: part for path, part in self._unnamed() if not part.tag(BatchStatistics)}

    def _unnamed(self) -> Iterator[tuple[str, Layer]]:
        return ((path, part) for path, name, part in _replacing(self.parts) if name is None)


def _replacing(parts: Parts, path: str = "") -> Iterator[tuple[str, str | None, Layer]]:
    """Yield path, name and layer of the parts that don't run as their module does."""
    for name, part in parts:
        inner = path if name is None else f"{path}.{name}" if path else name
        if isinstance(part.apply, ModuleApply):
            yield from _replacing(part.parts, inner)
        else:
            yield inner, name, part


class _Call(TorchFunctionMode):
    """One call of a `ModuleApply`; while entered, it answers the functions of PyTorch."""

    def __init__(
        self, apply: ModuleApply, params: Params, state: State, train: bool, key: Tensor | None
    ) -> None:
        super().__init__()
        self.apply, self.structure, self.train = apply, apply.structure, train
        self.path, self.module = "", self.structure.root
        self.key, self.keys = key, Keys(self._given_key)
        given, buffers = tree.flatten_named(params), tree.flatten_named(state)
        values = _take("params", given, self.structure.params)
        self.added = {name: given[name] for name in given.keys() - self.structure.params.keys()}
        self.inspection: Inspection | None = None
        if apply.is_root and train not in self.structure.inspected:
            caller = _Call.run.__code__
            self.inspection = Inspection(self.structure, values, caller, self._error)
            values = self.inspection.values
        state_values = _take("state", buffers, self.structure.buffers)
        values = values | {name: leaf.clone() for name, leaf in state_values.items()}
        self.copies = self.structure.copy(values, self._attributes)
        self.captured: dict[str, Tensor] = {}  # state of replaced parts that is no buffer

    def run(self, x: Any) -> tuple[Any, State]:
        """Return output and new state for the input `x`, which forward may not write to."""
        root = self.copies.modules[id(self.structure.root)]
        if self.apply.is_root:
            check_input("lift", x)
        given = x if isinstance(x, Arguments) else Arguments((x,), {})
        args, kwargs = tree.map(_cloned, given)
        with ExitStack() as modes:
            modes.enter_context(self)
            if self.inspection is not None:
                modes.enter_context(self.inspection)
            forward = root if self.apply.is_root else partial(type(root).forward, root)
            y = forward(*args, **kwargs)
        if names := self.copies.changed():
            raise self._error(
                f"assigns to {tree.listed(names)}: a call may change buffers only; register a "
                "buffer, or return the value"
            )
        if not self.apply.is_root and _is_written(args) and not _is_in_place(self.structure.root):
            raise self._error(
                "writes to its input, which the module around it may read: it can't be replaced"
            )
        all_modules_ran = not any(part.parts for part in self.apply.replaced.values())
        if self.inspection is not None and self.inspection.finish() and all_modules_ran:
            self.structure.inspected.add(self.train)
        return y, tree.unflatten_named(self.copies.buffers() | self.captured)

    def _attributes(self, path: str, module: nn.Module) -> dict[str, Any]:
        attributes: dict[str, Any] = {"training": self.train}
        if path:  # the root's own forward isn't a call of a child
            attributes["forward"] = partial(self._forward, path, module)
        return attributes

    def _forward(self, path: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run a child of a module, or the part that replaces it, with keys of its own."""
        caller = self.path, self.module, self.keys
        self.path, self.module, self.keys = path, module, self.keys.next()
        try:
            if (part := self.apply.replaced.get(path)) is not None:
                return self._run_replaced(part, args, kwargs)
            return type(module).forward(self._copy(), *args, **kwargs)
        finally:
            self.path, self.module, self.keys = caller

    def _run_replaced(self, part: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        copy, prefix = self._copy(), f"{self.path}."
        params, state = (
            {name: get_leaf(copy, name) for name, _ in leaves}
            for leaves in (self.module.named_parameters(), self.module.named_buffers())
        )
        added = {  # leaves of the transform that replaced the part
            name.removeprefix(prefix): leaf
            for name, leaf in self.added.items()
            if name.startswith(prefix)
        }
        x: Any = args[0] if len(args) == 1 and not kwargs else Arguments(args, kwargs)
        y, after = self._apply_part(part, params | added, state, x)
        for name, leaf in tree.flatten_named(after).items():
            if name in state:
                set_buffer(copy, name, leaf)
            else:
                self.captured[prefix + name] = leaf
        return x.copy_(y) if _is_in_place(self.module) else y

    def _apply_part(
        self, part: Layer, params: Mapping[str, Tensor], state: Mapping[str, Tensor], x: Any
    ) -> tuple[Any, State]:
        needs_key = part.stochastic and self.train and self.key is not None
        key = self.keys.key if needs_key else None
        trees = tree.unflatten_named(params), tree.unflatten_named(state)
        try:
            with self.inspection.paused() if self.inspection is not None else nullcontext():
                return part.apply(*trees, x, train=self.train, key=key)
        except LayerError as error:
            raise type(error)(error.problem, (*self._names(), *error.path)) from None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if function in STAND_INS:
            return STAND_INS[function](*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in WITHOUT_STAND_IN and is_random(function, args, kwargs):
            raise self._error(f"calls {name}, which draws random numbers and has no keyed stand-in")
        if name not in DRAWS:
            return function(*args, **kwargs)
        try:
            return stand_in(name, self._next_key, args, kwargs)
        except LayerError as error:
            raise error if error.path else self._error(f"draws: {error.problem}") from None

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Stand in for `F.batch_norm`: in training, the module's unnamed batch norm."""
        if not training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, False, momentum, eps
            )
        part, copy = self.apply.norms.get(self.path), self._copy()
        buffers = module_buffers(copy)
        running = {"running_mean": running_mean, "running_var": running_var}
        if part is None or any(buffers[name] is not leaf for name, leaf in running.items()):
            raise self._error(
                "calls F.batch_norm in training by itself: only modules of class nn.BatchNorm1d, "
                "2d or 3d with running statistics and a momentum can be lifted, as the statistics "
                "of a batch must be known to transforms"
            )
        affine = {"weight": weight, "bias": bias}
        params = {name: leaf for name, leaf in affine.items() if leaf is not None}
        state = {name: leaf for name, leaf in running.items() if leaf is not None}
        y, after = self._apply_part(part, params, state, input)
        buffers.update(after)
        return cast(Tensor, y)

    def _next_key(self) -> Tensor:
        """Return the key of the next draw in the forward of the module that runs."""
        key = self.keys.next().key
        if (part := self.apply.draws.get(self.path)) is not None:
            self._apply_part(part, {}, {}, key)  # where a transform refuses such draws
        return key

    def _given_key(self) -> Tensor:
        if self.key is None:
            raise self._error(
                "draws random numbers, and needs a key: "
                "apply(params, state, x, train=True, key=funcnets.random.key(0))"
            )
        return self.key

    def _copy(self) -> nn.Module:
        return self.copies.modules[id(self.module)]

    def _names(self) -> tuple[str, ...]:
        return tuple(self.path.split(".")) if self.path else ()

    def _error(self, problem: str) -> LayerError:
        return LayerError(f"{type(self.module).__name__}: its forward {problem}", self._names())


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _is_written(clones: Any) -> bool:
    """Return True if one of these fresh clones was written to, as far as PyTorch knows."""
    tensors = (leaf for leaf in tree.leaves(clones) if isinstance(leaf, Tensor))
    return any(version_of(leaf) > 0 for leaf in tensors)


def _is_in_place(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))


def _take(which: str, given: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    if missing := [name for name in names if name not in given]:
        raise LayerError(
            f"lift: {which} lack {tree.listed(missing)}: give apply the params and the state, in "
            "this order, that init or interop.from_module gave"
        )
    return {name: given[name] for name in names}
