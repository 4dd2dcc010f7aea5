"""Layers of modules: each child is a part, and batch norms and dropouts are known to transforms."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from funcnets import layers
from funcnets.core import Init, Layer, LayerError, Params, Parts, State
from funcnets.interop.keyed_draws import feature_shape, multiply_by_noise
from funcnets.interop.module_apply import ModuleApply
from funcnets.interop.module_copy import Structure
from funcnets.layers import BatchStatistics, MultiplicativeNoise

COUNTER = "num_batches_tracked"


def module_layer(
    structure: Structure, init: Init, *, is_root: bool, parts: Parts | None = None
) -> Layer:
    """Return the layer of a module, with `parts` in place of those that its children are."""
    module = structure.root
    if parts is None and (layer := _known(module)) is not None:
        return replace(layer, init=init)
    parts = _parts(module) if parts is None else tuple(parts)

    def rebuild(parts: Parts) -> Layer:
        return module_layer(structure, init, is_root=is_root, parts=parts)

    return Layer(
        repr(module) if not parts else type(module).__name__,
        init,
        ModuleApply(structure, parts, is_root=is_root),
        parts,
        stochastic=any(part.stochastic for _, part in parts),
        rebuild=rebuild if parts else None,
    )


def _parts(module: nn.Module) -> tuple[tuple[str | None, Layer], ...]:
    """Return a part for each child, and unnamed ones for what the module's own forward may do."""
    parts: list[tuple[str | None, Layer]] = [
        (name, module_layer(Structure(child), _no_init, is_root=False))
        for name, child in module.named_children()
    ]
    if _tracks_statistics(module) and module.momentum is not None:
        parts.append((None, _batch_norm(module)))
    if not type(module).__module__.startswith("torch.nn.modules."):  # whose draws are refused
        parts.append((None, _own_draws(module)))
    return tuple(parts)


def _known(module: nn.Module) -> Layer | None:
    """Return the layer of a batch norm or of a dropout whose forward is PyTorch's, else None."""
    # Batch norms of all dimensions have one forward; a synchronized one has another.
    if type(module).forward is nn.BatchNorm1d.forward and _tracks_statistics(module):
        return _batch_norm(module)
    forward = f"{type(module).forward.__module__}.{type(module).forward.__qualname__}"
    return _noise(module, _NOISE_SHAPES[forward]) if forward in _NOISE_SHAPES else None


def _no_init(key: Tensor, x: Tensor) -> tuple[Params, State]:
    raise LayerError(
        "a part of a lifted module has no initial values of its own: call init of the whole"
    )


def _tracks_statistics(module: nn.Module) -> bool:
    """Return True for a batch norm that normalises by running statistics in evaluation."""
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    return isinstance(module, kinds) and module.running_mean is not None


def _batch_norm(module: Any) -> Layer:
    """Return `layers.batch_norm` for a module's leaves, its counter of batches among them.

    Without a momentum, the running statistics are the mean over all batches so far.
    """
    momentum = 1.0 if module.momentum is None else module.momentum
    layer = layers.batch_norm(momentum, module.eps)
    tag = layer.tag(BatchStatistics)
    assert tag is not None

    def counted(before: State, after: State) -> State:
        if COUNTER not in before:  # the module's own forward counts
            return after
        count = before[COUNTER] + 1
        if module.momentum is None:
            after = {
                name: torch.lerp(before[name], leaf, (1 / count).to(leaf))
                for name, leaf in after.items()
            }
        return {**after, COUNTER: count}

    def update(state: State, mean: Tensor, variance: Tensor, count: int | Tensor) -> State:
        return counted(state, tag.update(state, mean, variance, count))

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        mean = state["running_mean"]
        affine = {"weight": torch.ones_like(mean), "bias": torch.zeros_like(mean), **params}
        flat = x if x.ndim in (2, 4) else x.reshape(*x.shape[:2], -1, 1)
        y, after = layer.apply(affine, state, flat, train=train)
        # Not a view where there is no need: forward may write in place, which costs views more.
        y = y if flat is x else y.reshape(x.shape)
        return y, counted(state, after) if train else state

    tags = (BatchStatistics(update, tag.as_state),)
    return replace(layer, kind=repr(module), init=_no_init, apply=apply, tags=tags)


NoiseShape = Callable[[Any, Tensor], tuple[int, ...]]
"""Function from a module and its input to the shape of its mask, which broadcasts to the input."""

_NOISE_SHAPES: dict[str, NoiseShape] = {
    "torch.nn.modules.dropout.Dropout.forward": lambda module, x: tuple(x.shape),
    "torch.nn.modules.dropout.Dropout1d.forward": lambda module, x: feature_shape(x, 1),
    "torch.nn.modules.dropout.Dropout2d.forward": lambda module, x: feature_shape(x),
    "torch.nn.modules.dropout.Dropout3d.forward": lambda module, x: feature_shape(x, 3),
    "torchvision.ops.stochastic_depth.StochasticDepth.forward": lambda module, x: (
        len(x) if module.mode == "row" else 1,
        *[1] * (x.ndim - 1),
    ),
}


def _noise(module: Any, shape: NoiseShape) -> Layer:
    """Return the layer that multiplies its input by a mask, with probability `module.p` zero."""

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if not train or module.p == 0:
            return x, {}
        if key is None:
            raise LayerError(
                f"{module!r}: needs a key in training: "
                "apply(params, state, x, train=True, key=funcnets.random.key(0))"
            )
        return multiply_by_noise(key, x, module.p, shape(module, x)), {}

    tags = (MultiplicativeNoise(),)
    return Layer(repr(module), _no_init, apply, stochastic=True, tags=tags)


def _own_draws(module: nn.Module) -> Layer:
    """Return the random layer that stands for draws in the module's own forward.

    It gives back its input.  A transform that must know how a random layer draws for each example
    refuses it, and so refuses these draws when they happen.
    """

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return x, {}

    kind = f"draws in the forward of {type(module).__name__}"
    return Layer(kind, _no_init, apply, stochastic=True)
