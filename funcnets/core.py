"""The one type of the library, `Layer`, and how layers combine into layers.

A network is a `Layer` like any other.  A combinator says how values flow (`wire`) and nothing
else: parameters, statistics, keys, shapes and the path in an error are threaded here, once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from funcnets import random, tree

Params = dict[str, Any]
State = dict[str, Any]


class Init(Protocol):
    """`init(key, x) -> (params, state)`; of `x` only shape and dtype are read.

    The batch of `x` may be empty.
    """

    def __call__(self, key: Tensor, x: Tensor) -> tuple[Params, State]: ...  # noqa: D102


class Apply(Protocol):
    """`apply(params, state, x, *, train=False, key=None) -> (y, new state)`."""

    def __call__(  # noqa: D102
        self,
        params: Params,
        state: State,
        x: Tensor,
        *,
        train: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Tensor, State]: ...


class Track(Protocol):
    """`track(state, mean, variance, count) -> state`: the running statistics after a batch.

    `mean` and biased `variance` (C,) are of the `count` values that the batch has in each channel.
    """

    def __call__(  # noqa: D102
        self, state: State, mean: Tensor, variance: Tensor, count: int
    ) -> State: ...


class LayerError(ValueError):
    """Something that a layer can't work with; `path` is the layer's dotted name in the network."""

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(problem, path)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.problem}" if self.path else self.problem

    def inside(self, name: str | None) -> "LayerError":
        """The same error, seen from the layer in which the failing one has this name."""
        return self if name is None else type(self)(self.problem, (name, *self.path))


@dataclass(frozen=True)
class Layer:
    """A pure function with parameters: a convolution and a ResNet alike.

    Attributes:
        kind: what it is, for people (`conv2d(64, 7, stride=2)`, `sequential`).
        init: `init(key, x) -> (params, state)`, the initial values for inputs like `x`.
        apply: `apply(params, state, x, *, train=False, key=None) -> (y, new state)`.
        parts: the layers that it is made of, with their names (None: no level of its own).
        stochastic: whether it needs a key in training.
        rebuild: `rebuild(parts)`, the same layer made of other parts; None without parts.
        track: how a batch norm follows its batches; None for any other layer.
        recomputed: whether derivatives compute its inside again (`transforms.remat`).
    """

    kind: str
    init: Init
    apply: Apply
    parts: tuple[tuple[str | None, "Layer"], ...] = ()
    stochastic: bool = field(default=False, kw_only=True)
    rebuild: "Callable[[Parts], Layer] | None" = field(default=None, kw_only=True)
    track: Track | None = field(default=None, kw_only=True)
    recomputed: bool = field(default=False, kw_only=True)

    @property
    def children(self) -> dict[str, "Layer"]:
        """The named parts, those of unnamed parts among them."""
        named: dict[str, Layer] = {}
        for name, part in self.parts:
            named.update(part.children if name is None else {name: part})
        return named

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(self.children)}>" if self.parts else f"<{self.kind}>"


Parts = Sequence[tuple[str | None, Layer]]
Run = Callable[[int, Tensor], Tensor]
Wire = Callable[[Run, Tensor], Tensor]


def check_layer(value: Any, what: str) -> None:
    """Raise TypeError unless `value`, which is called `what`, is a Layer."""
    if not isinstance(value, Layer):
        raise TypeError(f"{what}: got {value!r}, expected a Layer (call its constructor)")


def check_input(kind: str, x: Any) -> None:
    """Raise LayerError unless `x`, which a layer of this kind is given, is a tensor."""
    if not isinstance(x, Tensor):
        raise LayerError(
            f"{kind}: got {type(x).__name__} input, expected a tensor: torch.as_tensor(x) "
            "makes one of an array"
        )


def meta(values: Any) -> Any:
    """The same tree with shapes and dtypes alone, without memory or arithmetic."""
    return tree.map(lambda leaf: torch.empty_like(leaf, device="meta"), values)


def output(layer: Layer, params: Params, state: State, x: Tensor) -> Tensor:
    """What `layer` gives for an input like `x`, as a meta tensor: nothing is computed."""
    return layer.apply(meta(params), meta(state), meta(x))[0]


def shown(x: Tensor) -> str:
    """The shape of `x` for people, with N for the empty batch on which networks are initialised."""
    return str(tuple(x.shape)).replace("(0,", "(N,")


def _merge(into: dict[str, Any], name: str | None, values: dict[str, Any]) -> None:
    """Give a part's leaves their place: under its name, or beside the others if it has none."""
    for key, value in (values if name is None else {name: values} if values else {}).items():
        if key in into:
            raise LayerError(
                f"two parts without a name have a leaf or part `{key}`: name them, as in "
                "sequential(first=..., second=...)"
            )
        into[key] = value


def _view(values: dict[str, Any], name: str | None) -> dict[str, Any]:
    return values if name is None else values.get(name, {})


def _without_arithmetic(kind: str, init: Init) -> Init:
    """The same `init`, for an empty batch of inputs like `x`, or for a meta tensor.

    There are operations that take no empty batch, such as `view(len(x), -1)`.  Meta tensors do for
    all, but PyTorch imports its tracer for them, which takes two seconds.
    """

    def init_by_shape(key: Tensor, x: Tensor) -> tuple[Params, State]:
        check_input(kind, x)
        if not x.is_meta:
            try:
                return init(key, x[:0])
            except LayerError:
                raise
            except Exception:  # whatever it is, meta tensors give it again
                x = meta(x if len(x) else x.new_empty(1, *x.shape[1:]))
        return init(key, x)

    return init_by_shape


def combine(kind: str, parts: Parts, wire: Wire) -> Layer:
    """A layer made of `parts`, whose values flow as `wire(run, x)` says.

    `run(i, x)` applies part i to x; `wire` calls it once for each part, in any order and on any
    values.  Part i gets `fold_in(key, i)`, and its own leaves alone: those under its name, or,
    if its name is None, leaves directly beside those of the others.
    """
    parts = tuple(parts)

    def draw(key: Tensor, x: Tensor) -> tuple[Params, State]:
        params: Params = {}
        state: State = {}
        keys = random.split(key, len(parts))  # as `fold_in` gives one by one, in less time

        def run(index: int, value: Tensor) -> Tensor:
            name, part = parts[index]
            try:
                part_params, part_state = part.init(keys[index], value)
                if value.is_meta:
                    result = output(part, part_params, part_state, value)
                else:
                    result, _ = part.apply(part_params, part_state, value)
            except LayerError as error:
                raise error.inside(name) from None
            _merge(params, name, part_params)
            _merge(state, name, part_state)
            return result

        wire(run, x)
        return params, state

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        new_state: State = {}

        def run(index: int, value: Tensor) -> Tensor:
            name, part = parts[index]
            part_key = (
                random.fold_in(key, index)
                if part.stochastic and train and key is not None
                else None
            )
            try:
                result, part_state = part.apply(
                    _view(params, name), _view(state, name), value, train=train, key=part_key
                )
            except LayerError as error:
                raise error.inside(name) from None
            _merge(new_state, name, part_state)
            return result

        return wire(run, x), new_state

    return Layer(
        kind,
        _without_arithmetic(kind, draw),
        apply,
        parts,
        stochastic=any(part.stochastic for _, part in parts),
        rebuild=lambda parts: combine(kind, parts, wire),
    )


def wrap(
    layer: Layer, around: Callable[[Apply], Apply], *, recomputed: bool | None = None
) -> Layer:
    """The same layer with `around(apply)` in place of its `apply`.

    The same parameters fit, and what is wrapped stays so when `rewrite` changes its parts.
    """
    rebuild = layer.rebuild
    return replace(
        layer,
        apply=around(layer.apply),
        rebuild=rebuild and (lambda parts: wrap(rebuild(parts), around, recomputed=recomputed)),
        recomputed=layer.recomputed if recomputed is None else recomputed,
    )


def rewrite(net: Layer, function: Callable[[str | None, Layer], Layer]) -> Layer:
    """The same network with `function(name, layer)` in place of each layer, the innermost first.

    `name` is dotted, as in the parameter tree: empty for the network itself, and None for a part
    without a name of its own.  Parts keep their places and keys, so the same parameters fit.

    Raises TypeError for what is no layer.
    """
    check_layer(net, "the network")
    return function("", _rewrite_parts(net, "", function))


def _rewrite_parts(
    layer: Layer, path: str, function: Callable[[str | None, Layer], Layer]
) -> Layer:
    if layer.rebuild is None:
        return layer
    parts: list[tuple[str | None, Layer]] = []
    for name, part in layer.parts:
        inner = path if name is None else f"{path}.{name}" if path else name
        below = _rewrite_parts(part, inner, function)
        parts.append((name, function(None if name is None else inner, below)))
    return layer.rebuild(parts)


def _gather(layers: Sequence[Layer], named: Mapping[str, Layer]) -> Parts:
    parts: Parts = [*((None, layer) for layer in layers), *named.items()]
    for name, part in parts:
        check_layer(part, name or "a part")
        if name is not None and "." in name:
            raise ValueError(f"{name}: a part's name has no dot in it; dots join names to paths")
    return parts


def sequential(*layers: Layer, **named: Layer) -> Layer:
    """One layer after another: first `layers`, then `named`, in the order given.

    A part without a name has no level of its own in the tree: its leaves stand beside the others'.
    """
    parts = _gather(layers, named)

    def wire(run: Run, x: Tensor) -> Tensor:
        for index in range(len(parts)):
            x = run(index, x)
        return x

    return combine("sequential", parts, wire)


def residual(main: Layer, shortcut: Layer | None = None) -> Layer:
    """`main(x) + shortcut(x)`, or `main(x) + x`; the shortcut's leaves stand under `shortcut`.

    He et al., Deep Residual Learning for Image Recognition, 2015, equations 1 and 2.
    """
    parts = _gather([main], {} if shortcut is None else {"shortcut": shortcut})

    def wire(run: Run, x: Tensor) -> Tensor:
        value, other = run(0, x), x if shortcut is None else run(1, x)
        if value.shape != other.shape:
            raise LayerError(
                f"residual: the main path gives {shown(value)} and the shortcut {shown(other)}: "
                "give a shortcut that changes the shape alike"
            )
        return value + other

    return combine("residual", parts, wire)


def concat(*branches: Layer, **named: Layer) -> Layer:
    """Every branch on the same input, their outputs joined on channels (dimension 1)."""
    parts = _gather(branches, named)
    return combine(
        "concat", parts, lambda run, x: torch.cat([run(i, x) for i in range(len(parts))], dim=1)
    )


def dense(*layers: Layer, **named: Layer) -> Layer:
    """Each layer's output joined to its input on channels: x becomes [x, f(x)], again and again.

    Huang et al., Densely Connected Convolutional Networks, 2016, equation 2.
    """
    parts = _gather(layers, named)

    def wire(run: Run, x: Tensor) -> Tensor:
        for index in range(len(parts)):
            x = torch.cat([x, run(index, x)], dim=1)
        return x

    return combine("dense", parts, wire)
