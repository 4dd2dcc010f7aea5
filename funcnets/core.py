"""`Layer`, the only type of a network, and the combinators that make layers of layers.

A convolution and a ResNet are both a `Layer`.  A combinator (`sequential`, `residual`, or your own
by `combine`) describes the forward pass of its parts and nothing else: `combine` threads
parameters, running statistics, keys, shapes and the path in an error message.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets._pickling import reduced

Params = dict[str, Any]
State = dict[str, Any]
Tag = TypeVar("Tag")


class Init(Protocol):
    """Function `init(key, x) -> (params, state)` that draws the initial values.

    Only the shape and the dtype of `x` are read, and its batch may be empty.
    """

    def __call__(self, key: Tensor, x: Tensor) -> tuple[Params, State]: ...  # noqa: D102


class Apply(Protocol):
    """Function `apply(params, state, x, *, train=False, key=None) -> (y, new state)`."""

    def __call__(  # noqa: D102
        self,
        params: Params,
        state: State,
        x: Tensor,
        *,
        train: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Tensor, State]: ...


class LayerError(ValueError):
    """Error of a layer; `path` has the names that lead to this layer in the network."""

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(problem, path)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.problem}" if self.path else self.problem

    def inside(self, name: str | None) -> "LayerError":
        """Return the same error with `name`, that of a part, put before its path."""
        return self if name is None else type(self)(self.problem, (name, *self.path))


@dataclass(frozen=True)
class Layer:
    """Pure function with parameters: a frozen record of `init`, `apply` and the layer's parts.

    Attributes:
        kind: description for people (`conv2d(64, 7, stride=2)`, `sequential`).
        init: `init(key, x) -> (params, state)`, the initial values for inputs like `x`.
        apply: `apply(params, state, x, *, train=False, key=None) -> (y, new state)`.
        parts: (name, layer) of each layer that it is made of; a part whose name is None has no
            level of its own in the trees of parameters and state.
        stochastic: True if it needs a key in training.
        rebuild: `rebuild(parts)` makes the same layer of other parts; None without parts.
        tags: objects that tell transforms more about the layer, at most one of each type, such as
            `layers.BatchStatistics`.  Any layer may have them; read them with `tag`.

    >>> import torch
    >>> from funcnets import layers, random
    >>> layer = layers.linear(3)
    >>> x = torch.ones(2, 4)
    >>> params, state = layer.init(random.key(0), x)
    >>> {name: tuple(leaf.shape) for name, leaf in params.items()}, state
    ({'weight': (3, 4), 'bias': (3,)}, {})
    >>> y, state = layer.apply(params, state, x)
    >>> tuple(y.shape)
    (2, 3)
    """

    kind: str
    init: Init
    apply: Apply
    parts: tuple[tuple[str | None, "Layer"], ...] = ()
    stochastic: bool = field(default=False, kw_only=True)
    rebuild: "Callable[[Parts], Layer] | None" = field(default=None, kw_only=True)
    tags: tuple[object, ...] = field(default=(), kw_only=True, compare=False)

    @property
    def children(self) -> dict[str, "Layer"]:
        """Named parts by name, including the named parts of unnamed parts."""
        named: dict[str, Layer] = {}
        for name, part in self.parts:
            named.update(part.children if name is None else {name: part})
        return named

    def tag(self, kind: type[Tag]) -> Tag | None:
        """Return the layer's tag of type `kind`, or None if it has none.

        >>> from funcnets import layers
        >>> layers.batch_norm().tag(layers.BatchStatistics) is not None
        True
        >>> layers.relu().tag(layers.BatchStatistics) is None
        True
        """
        return next((tag for tag in self.tags if isinstance(tag, kind)), None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduced(self) or super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> "Layer":
        return self  # nothing can change it

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(self.children)}>" if self.parts else f"<{self.kind}>"


Parts = Sequence[tuple[str | None, Layer]]
ApplyPart = Callable[[int, Tensor], Tensor]
Forward = Callable[[ApplyPart, Tensor], Tensor]


def check_layer(value: Any, name: str) -> None:
    """Raise TypeError unless `value` is a Layer; the message calls it `name`."""
    if not isinstance(value, Layer):
        raise TypeError(f"{name}: got {value!r}, expected a Layer (call its constructor)")


def check_input(kind: str, x: Any) -> None:
    """Raise LayerError unless `x`, the input of a layer of this kind, is a tensor."""
    if not isinstance(x, Tensor):
        raise LayerError(
            f"{kind}: got {type(x).__name__} input, expected a tensor: torch.as_tensor(x) "
            "makes one of an array"
        )


def to_meta(values: Any) -> Any:
    """Return the tree with each tensor on the meta device: shapes and dtypes without memory."""
    return tree.map(lambda leaf: torch.empty_like(leaf, device="meta"), values)


def eval_shape(layer: Layer, params: Params, state: State, x: Tensor) -> Tensor:
    """Return the output of `layer` for inputs like `x` as a meta tensor, without computing it.

    Only its shape and dtype mean anything.  Named after `jax.eval_shape`.

    >>> import torch
    >>> from funcnets import core, layers, random
    >>> layer, x = layers.conv2d(8, 3), torch.zeros(2, 1, 28, 28)
    >>> tuple(core.eval_shape(layer, *layer.init(random.key(0), x), x).shape)
    (2, 8, 26, 26)
    """
    return layer.apply(to_meta(params), to_meta(state), to_meta(x))[0]


def format_shape(x: Tensor) -> str:
    """Return the shape of `x` as text, with N for the empty batch of an initialisation."""
    return str(tuple(x.shape)).replace("(0,", "(N,")


def _merge(into: dict[str, Any], name: str | None, values: dict[str, Any]) -> None:
    """Put a part's leaves into `into`: under its name, or beside the others if it has none."""
    for key, value in (values if name is None else {name: values} if values else {}).items():
        if key in into:
            raise LayerError(
                f"two parts without a name have a leaf or part `{key}`: name them, as in "
                "sequential(first=..., second=...)"
            )
        into[key] = value


def _subtree(values: dict[str, Any], name: str | None) -> dict[str, Any]:
    return values if name is None else values.get(name, {})


def _init_by_shape(kind: str, init: Init) -> Init:
    """Return `init` run on an empty batch of inputs like `x`, or on a meta tensor if that fails.

    Some operations refuse an empty batch, such as `view(len(x), -1)`.  All accept meta tensors, but
    for these PyTorch imports its tracer, which takes two seconds.
    """

    def init_by_shape(key: Tensor, x: Tensor) -> tuple[Params, State]:
        check_input(kind, x)
        if not x.is_meta:
            try:
                return init(key, x[:0])
            except LayerError:
                raise
            except Exception:  # an error of the layer itself is raised again on the meta tensor
                x = to_meta(x if len(x) else x.new_empty(1, *x.shape[1:]))
        return init(key, x)

    return init_by_shape


def combine(kind: str, parts: Parts, forward: Forward) -> Layer:
    """Return the layer made of `parts` whose forward pass is `forward(apply_part, x)`.

    Args:
        kind: description of the layer.
        parts: (name, layer) of each part.  A part whose name is None has no level of its own: its
            leaves stand directly beside those of the other parts.
        forward: computes the output from `x`.  It calls `apply_part(i, value)`, which applies part
            i to a tensor, once for each part, in any order.

    Part i draws its initial values from `fold_in(key, i)`, and its randomness in training as well.

    Raises LayerError, from `init`, where two unnamed parts have a leaf or part of the same name.

    >>> import torch
    >>> from funcnets import core, layers, random
    >>> def forward(apply_part, x):
    ...     return apply_part(0, x) * apply_part(1, x)
    >>> parts = [("gate", layers.sigmoid()), ("value", layers.tanh())]
    >>> gated = core.combine("gated", parts, forward)
    >>> params, state = gated.init(random.key(0), torch.zeros(1, 2))
    >>> gated.apply(params, state, torch.zeros(1, 2))
    (tensor([[0., 0.]]), {})
    """
    parts = tuple(parts)
    return Layer(
        kind,
        _init_by_shape(kind, _combined_init(parts, forward)),
        _combined_apply(parts, forward),
        parts,
        stochastic=any(part.stochastic for _, part in parts),
        rebuild=lambda parts: combine(kind, parts, forward),
    )


def _combined_init(parts: Parts, forward: Forward) -> Init:
    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        params: Params = {}
        state: State = {}
        keys = random.split(key, len(parts))  # keys[i] is fold_in(key, i); one call is faster

        def apply_part(index: int, value: Tensor) -> Tensor:
            name, part = parts[index]
            try:
                part_params, part_state = part.init(keys[index], value)
                if value.is_meta:
                    result = eval_shape(part, part_params, part_state, value)
                else:
                    result, _ = part.apply(part_params, part_state, value)
            except LayerError as error:
                raise error.inside(name) from None
            _merge(params, name, part_params)
            _merge(state, name, part_state)
            return result

        forward(apply_part, x)
        return params, state

    return init


def _combined_apply(parts: Parts, forward: Forward) -> Apply:
    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        new_state: State = {}

        def apply_part(index: int, value: Tensor) -> Tensor:
            name, part = parts[index]
            part_key = (
                random.fold_in(key, index)
                if part.stochastic and train and key is not None
                else None
            )
            try:
                result, part_state = part.apply(
                    _subtree(params, name), _subtree(state, name), value, train=train, key=part_key
                )
            except LayerError as error:
                raise error.inside(name) from None
            _merge(new_state, name, part_state)
            return result

        return forward(apply_part, x), new_state

    return apply


def wrap(layer: Layer, around: Callable[[Apply], Apply], *, tags: Sequence[object] = ()) -> Layer:
    """Return the layer with `around(apply)` in place of its `apply`; the same parameters fit.

    `tags` are added to those of the layer, and replace tags of the same type.  The result stays
    wrapped when `rewrite` changes its parts.

    >>> import torch
    >>> from funcnets import core, layers
    >>> def doubled(inner):
    ...     def apply(params, state, x, *, train=False, key=None):
    ...         y, state = inner(params, state, x, train=train, key=key)
    ...         return 2 * y, state
    ...     return apply
    >>> core.wrap(layers.relu(), doubled).apply({}, {}, torch.ones(1, 2))
    (tensor([[2., 2.]]), {})
    """
    rebuild = layer.rebuild
    replaced = tuple(type(tag) for tag in tags)
    return replace(
        layer,
        apply=around(layer.apply),
        rebuild=rebuild and (lambda parts: wrap(rebuild(parts), around, tags=tags)),
        tags=(*(tag for tag in layer.tags if type(tag) not in replaced), *tags),
    )


def rewrite(net: Layer, function: Callable[[str | None, Layer], Layer]) -> Layer:
    """Return the network with `function(name, layer)` in place of each layer, innermost first.

    `name` is the dotted path, as in the parameter tree: empty for the network itself, and None for
    a part without a name.  Parts keep their places and keys, so the same parameters fit.

    Raises TypeError if `net` is not a Layer.

    >>> from funcnets import core, layers, sequential
    >>> net = sequential(conv=layers.conv2d(8, 3), act=layers.sigmoid())
    >>> core.rewrite(net, lambda name, layer: layers.relu() if name == "act" else layer).children
    {'conv': <conv2d(8, 3)>, 'act': <relu()>}
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


def _named_parts(layers: Sequence[Layer], named: Mapping[str, Layer]) -> Parts:
    parts: Parts = [*((None, layer) for layer in layers), *named.items()]
    for name, part in parts:
        check_layer(part, name or "a part")
        if name is not None and "." in name:
            raise ValueError(
                f"{name}: the name of a part must have no dot; dots join names to paths"
            )
    return parts


def sequential(*layers: Layer, **named: Layer) -> Layer:
    """Return the layer that applies `layers`, then `named`, one after another in the order given.

    A part without a name has no level of its own in the trees: its leaves stand beside the others'.

    Raises TypeError for a part that is not a Layer, ValueError for a name with a dot in it.

    >>> import torch
    >>> from funcnets import layers, random, sequential, tree
    >>> net = sequential(conv=layers.conv2d(8, 3), act=layers.relu(), pool=layers.max_pool(2))
    >>> x = torch.zeros(1, 1, 28, 28)
    >>> params, state = net.init(random.key(0), x)
    >>> tree.names(params)
    ['conv.bias', 'conv.weight']
    >>> tuple(net.apply(params, state, x)[0].shape)
    (1, 8, 13, 13)
    """
    parts = _named_parts(layers, named)

    def forward(apply_part: ApplyPart, x: Tensor) -> Tensor:
        for index in range(len(parts)):
            x = apply_part(index, x)
        return x

    return combine("sequential", parts, forward)


def residual(main: Layer, shortcut: Layer | None = None) -> Layer:
    """Return the layer `main(x) + shortcut(x)`, or `main(x) + x` without a shortcut.

    The leaves of the shortcut stand under `shortcut`, those of `main` have no level of their own.

    Raises LayerError, from `init` and `apply`, where the two have different shapes.
    He et al., Deep Residual Learning for Image Recognition, 2015, equations 1 and 2.

    >>> import torch
    >>> from funcnets import layers, residual
    >>> residual(layers.relu()).apply({}, {}, torch.tensor([[-1.0, 1.0]]))
    (tensor([[-1.,  2.]]), {})
    """
    parts = _named_parts([main], {} if shortcut is None else {"shortcut": shortcut})

    def forward(apply_part: ApplyPart, x: Tensor) -> Tensor:
        value, other = apply_part(0, x), x if shortcut is None else apply_part(1, x)
        if value.shape != other.shape:
            raise LayerError(
                f"residual: the main path has an output of shape {format_shape(value)} and the "
                f"shortcut {format_shape(other)}: give a shortcut that changes the shape in the "
                "same way"
            )
        return value + other

    return combine("residual", parts, forward)


def concat(*branches: Layer, **named: Layer) -> Layer:
    """Return the layer that applies every branch to the same input and joins them on channels.

    The outputs (N, C_i, ...) become (N, sum of C_i, ...), in the order given.

    >>> import torch
    >>> from funcnets import concat, layers
    >>> concat(layers.relu(), layers.tanh()).apply({}, {}, torch.zeros(1, 2))
    (tensor([[0., 0., 0., 0.]]), {})
    """
    parts = _named_parts(branches, named)

    def forward(apply_part: ApplyPart, x: Tensor) -> Tensor:
        return torch.cat([apply_part(index, x) for index in range(len(parts))], dim=1)

    return combine("concat", parts, forward)


def dense(*layers: Layer, **named: Layer) -> Layer:
    """Return the layer in which x becomes [x, f(x)], joined on channels, for each part f in turn.

    Huang et al., Densely Connected Convolutional Networks, 2016, equation 2.

    >>> import torch
    >>> from funcnets import dense, layers
    >>> dense(layers.relu()).apply({}, {}, torch.tensor([[-1.0, 1.0]]))
    (tensor([[-1.,  1.,  0.,  1.]]), {})
    """
    parts = _named_parts(layers, named)

    def forward(apply_part: ApplyPart, x: Tensor) -> Tensor:
        for index in range(len(parts)):
            x = torch.cat([x, apply_part(index, x)], dim=1)
        return x

    return combine("dense", parts, forward)
