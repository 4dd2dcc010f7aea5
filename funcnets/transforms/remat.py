"""Rematerialisation: memory traded for compute, by computing a layer's inside a second time."""

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
    """The same layer, which keeps only its arguments for the backward pass, and not its inside.

    What derivatives need of the inside is computed again when they are taken: the same numbers,
    for less memory and at most one more forward pass.  Statistics are those of the first pass.
    It works under `torch.func` transforms, plain autograd and `jit` alike, and saves where the
    layer's inside is larger than its input and output: a block, not a whole network (whose inside
    is all there again at once) nor a single convolution.  Under `torch.func.grad` without `jit` it
    saves nothing, as all that the backward pass computes is kept there for a second derivative.
    `rewrite` takes it to parts by name:

        rewrite(net, lambda name, layer: remat(layer) if name in {"stage1", "stage2"} else layer)

    A block with a batch norm inside is refused by `accumulate` and `per_example_gradients` where
    they pass it the statistics of the whole batch (`batch` and `batch_constant`, in this order).

    Raises TypeError for what is no layer.
    Chen et al., Training deep nets with sublinear memory cost, 2016.
    """
    check_layer(layer, "remat")
    return wrap(layer, _rematerialized, tags=[Rematerialized()])


def _rematerialized(inner: Apply) -> Apply:
    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        leaves, structure = tree.flatten((x, key, params, state))
        structures: list[tree.type_spec] = []

        def flat(*leaves: Tensor | None) -> tuple[Tensor, ...]:
            x, key, params, state = tree.unflatten(leaves, structure)
            results, of_results = tree.flatten(inner(params, state, x, train=train, key=key))
            structures.append(of_results)
            return tuple(results)

        results = _Recomputed.apply(flat, *leaves)
        y, state = tree.unflatten(results, structures[0])
        return y, state

    return apply


class _Recomputed(torch.autograd.Function):
    """`flat(x, key, *others)`, whose derivatives call it again."""

    @staticmethod
    def forward(flat: Flat, *leaves: Tensor | None) -> tuple[Tensor, ...]:
        # A result that is an argument, as the statistics in evaluation are, couldn't be saved.
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
        signal = given[0][1]
        leaves = [_after(x, signal), key if key is None else _after(key, signal), *others]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        function, values = _of_some(ctx.flat, leaves, wanted)

        def product(*values: Tensor) -> Tensor:
            results = function(*values)
            return torch.stack([(results[i] * cotangent).sum() for i, cotangent in given]).sum()

        # Not `vjp`, whose pullback runs outside of its level, where another remat's can't.
        found = torch.func.grad(product, tuple(range(len(wanted))))(*values)
        gradients = dict(zip(wanted, found, strict=True))
        return None, *(gradients.get(i) for i in range(len(leaves)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        moved = {i: tangent for i, tangent in enumerate(tangents) if tangent is not None}
        function, values = _of_some(ctx.flat, ctx.saved_tensors, list(moved))
        return torch.func.jvp(function, tuple(values), tuple(moved.values()))[1]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], flat: Flat, *leaves: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        mapped = torch.func.vmap(flat, in_dims[1:], randomness=info.randomness)
        results = _Recomputed.apply(mapped, *leaves)
        return results, (0,) * len(results)


def _of_some(
    flat: Flat, leaves: Sequence[Tensor | None], places: Sequence[int]
) -> tuple[Flat, list[Any]]:
    """`flat` as a function of the leaves at `places`, and these."""

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(places, values, strict=True))
        return flat(*(given.get(i, leaf) for i, leaf in enumerate(leaves)))

    return function, [leaves[i] for i in places]


class _After(torch.autograd.Function):
    """`value`, in a form that can't be computed before `signal` is.

    Else a compiler would see the same computation twice, and keep the first one's results.
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
        # The value stays one for all, if it was: a Jacobian's rows recompute once, not a time each.
        if in_dims[1] is not None:
            signal = signal.select(in_dims[1], 0)
        return _after(value, signal), in_dims[0]


_after = _After.apply
