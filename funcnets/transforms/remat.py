"""Rematerialisation (gradient checkpointing): recompute activations instead of storing them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcnets import tree
from funcnets.core import Apply, Layer, Params, State, check_layer, wrap

Flat = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Rematerialized:
    """Tag of a layer whose inside is computed again for derivatives."""


def remat(layer: Layer) -> Layer:
    """Return the layer that stores only its arguments for the backward pass.

    The activations inside are computed again when derivatives are taken: the same numbers, in less
    memory, for at most one more forward pass.  Running statistics are those of the first pass.  It
    works under `torch.func` transforms, plain autograd and `jit`.

    It saves memory for a block, whose activations are larger than its input and output; not for a
    whole network, which is recomputed at once, nor for a single convolution.  Under
    `torch.func.grad` without `jit` it saves nothing, because the backward pass is stored for a
    second derivative.  Use `core.rewrite` to apply it to parts by name.

    `accumulate(..., statistics="batch")` and `per_example_gradients(...,
    statistics="batch_constant")` refuse a batch norm inside such a block.

    Raises TypeError if `layer` is not a Layer.
    Chen et al., Training deep nets with sublinear memory cost, 2016.

    >>> from funcnets import core, models, transforms
    >>> def rematerialize(name, layer):
    ...     return transforms.remat(layer) if name in {"stage1", "stage2"} else layer
    >>> net = core.rewrite(models.resnet18(), rematerialize)
    """
    check_layer(layer, "remat")
    return wrap(layer, _rematerialized, tags=[Rematerialized()])


def _rematerialized(inner: Apply) -> Apply:
    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        leaves, structure = tree.flatten((x, key, params, state))
        structures: list[tree.Structure] = []

        def flat(*leaves: Tensor | None) -> tuple[Tensor, ...]:
            x, key, params, state = tree.unflatten(leaves, structure)
            results, of_results = tree.flatten(inner(params, state, x, train=train, key=key))
            structures.append(of_results)
            return tuple(results)

        results = _Rematerialize.apply(flat, *leaves)
        y, state = tree.unflatten(results, structures[0])
        return y, state

    return apply


class _Rematerialize(torch.autograd.Function):
    """`flat(x, key, *others)`, called again to compute its derivatives."""

    @staticmethod
    def forward(flat: Flat, *leaves: Tensor | None) -> tuple[Tensor, ...]:
        # A result that is an argument, such as running statistics in evaluation, can't be saved.
        return tuple(result.view_as(result) for result in flat(*leaves))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.flat, *leaves = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*leaves)
        ctx.save_for_forward(*leaves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [(i, cotangent) for i, cotangent in enumerate(cotangents) if cotangent is not None]
        x, key, *others = ctx.saved_tensors
        earliest = given[0][1]
        leaves = [_after(x, earliest), key if key is None else _after(key, earliest), *others]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        function, values = _restrict(ctx.flat, leaves, wanted)

        def product(*values: Tensor) -> Tensor:
            results = function(*values)
            return torch.stack([(results[i] * cotangent).sum() for i, cotangent in given]).sum()

        # Not `vjp`: its backward pass runs after the transform ended, where a nested remat fails.
        found = torch.func.grad(product, tuple(range(len(wanted))))(*values)
        gradients = dict(zip(wanted, found, strict=True))
        return None, *(gradients.get(i) for i in range(len(leaves)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        moved = {i: tangent for i, tangent in enumerate(tangents) if tangent is not None}
        function, values = _restrict(ctx.flat, ctx.saved_tensors, list(moved))
        result: Any = torch.func.jvp(function, tuple(values), tuple(moved.values()))
        tangent: tuple[Tensor, ...] = result[1]
        return tangent

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], flat: Flat, *leaves: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        mapped = torch.func.vmap(flat, in_dims[1:], randomness=info.randomness)
        results = _Rematerialize.apply(mapped, *leaves)
        return results, (0,) * len(results)


def _restrict(
    flat: Flat, leaves: Sequence[Tensor | None], indices: Sequence[int]
) -> tuple[Flat, list[Any]]:
    """Return `flat` as a function of the leaves at `indices` alone, and these leaves."""

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(indices, values, strict=True))
        return flat(*(given.get(i, leaf) for i, leaf in enumerate(leaves)))

    return function, [leaves[i] for i in indices]


class _After(torch.autograd.Function):
    """`value`, as an operation that depends on `signal` and so can't run before it.

    Otherwise common subexpression elimination in a compiler would find the same computation twice
    and keep the results of the first.
    """

    @staticmethod
    def forward(value: Tensor, signal: Tensor) -> Tensor:
        return torch.where(signal.flatten()[:1].isnan().any(), value, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: Tensor | None) -> Tensor | None:
        return None if tangent is None else tangent.view_as(tangent)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None], value: Tensor, signal: Tensor
    ) -> tuple[Tensor, int | None]:
        # An unmapped value stays unmapped, so that all rows of a Jacobian share one recomputation.
        if in_dims[1] is not None:
            signal = signal.select(in_dims[1], 0)
        return _after(value, signal), in_dims[0]


_after = _After.apply
