"""Dropout of a module by the masks that a layer draws from its key."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from funcnets import random
from funcnets.core import Apply, Layer, Params, State, rewrite, wrap
from funcnets.layers import MultiplicativeNoise
from funcnets.testing._difference import Difference
from funcnets.testing.twins import MaskedDropout

# What each drops as a whole; torchvision's StochasticDepth drops examples.
_UNITS = {
    nn.Dropout: "element",
    MaskedDropout: "element",
    nn.Dropout1d: "feature",
    nn.Dropout2d: "feature",
    nn.Dropout3d: "feature",
}
# Where a layer drops another fraction than the module, by more standard deviations than these.
DEVIATIONS = 5.0
LEAST_DRAWS = 2**15


class Drawn(NamedTuple):
    """Mask of one call of a random layer, and the share of values that the layer keeps."""

    name: str | None
    mask: Tensor
    share: float
    deviation: float  # standard deviation of the share where half of the values are kept
    unit: str  # what is dropped as a whole; see `_unit`
    is_shared: bool  # True if all examples have one mask


def masks(layer: Layer, params: Params, state: State, x: Tensor, key: Tensor) -> list[Drawn]:
    """Return the mask of each call of a random layer in training, in the order of the calls."""
    drawn: list[Drawn] = []

    def recorded(name: str | None, part: Layer) -> Layer:
        if part.rebuild is not None or part.tag(MultiplicativeNoise) is None:
            return part
        return wrap(part, lambda inner: _recording(name, inner, drawn))

    rewrite(layer, recorded).apply(params, state, x, train=True, key=key)
    return drawn


def _recording(name: str | None, inner: Apply, drawn: list[Drawn]) -> Apply:
    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if train and key is not None:
            ones = torch.ones(x.shape, dtype=x.dtype)
            mask = inner(params, state, ones, train=True, key=key)[0] != 0
            per_example = max(1, ones[:1].numel())
            rows = min(max(LEAST_DRAWS // per_example, 16), 512)
            many = inner(params, state, ones.new_ones(rows, *x.shape[1:]), train=True, key=key)[0]
            drawn.append(_drawn(name, mask, many != 0))
        return inner(params, state, x, train=train, key=key)

    return apply


def _drawn(name: str | None, mask: Tensor, many: Tensor) -> Drawn:
    """Return the record of a call, by `many` examples' masks."""
    unit, maps = _unit(many), many.flatten(2) if many.ndim > 2 else many[..., None]
    draws = {"example": len(maps), "feature": maps[..., 0].numel()}.get(unit, maps.numel())
    is_shared = bool((many == many[:1]).all())
    draws = 1 if is_shared else draws
    return Drawn(name, mask, float(many.double().mean()), 0.5 / draws**0.5, unit, is_shared)


def _unit(many: Tensor) -> str:
    """Return what is dropped as a whole: "element", "feature" or "example"; "" if unknown."""
    maps = many.flatten(2) if many.ndim > 2 else many[..., None]
    if bool(many.all()) or maps[0].numel() == 1:
        return ""
    if bool((maps != maps[..., :1]).any()):
        return "element"
    if bool((maps != maps[:, :1]).any()):
        return "feature" if maps.shape[2] > 1 else ""
    return "example"


def dropouts(module: nn.Module) -> dict[str, Any]:
    """Return the modules that drop values with a probability other than 0, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if (isinstance(part, tuple(_UNITS)) or type(part).__name__ == "StochasticDepth") and part.p
    }


@contextmanager
def without_draws() -> Iterator[None]:
    """Raise Difference where the code inside draws from PyTorch's generator, and restore it."""
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        yield
        if not torch.equal(torch.get_rng_state(), before):
            raise Difference(
                "the module draws random numbers outside of its dropout layers, which the layer "
                "can't repeat: compare evaluation alone, by modes=(False,)"
            )


@contextmanager
def masked(
    module: nn.Module, drawn: list[Drawn], renamed: Callable[[str], str | None]
) -> Iterator[None]:
    """Let the dropouts of `module` use these masks, inside the context.

    Masks are assigned by name, after `renamed`; by order, where the names differ.

    Raises Difference for another number of dropouts, or another fraction of dropped values.
    """
    parts = dropouts(module)
    if not module.training:
        parts = {}
    by_name = {renamed(name) for name in parts} <= {each.name for each in drawn}
    shared = list(drawn)
    for name, part in parts.items():
        own = [each for each in drawn if each.name == renamed(name)] if by_name else shared
        part.forward = partial(_drop, name, part, own)
    yield
    for part in parts.values():
        del part.forward
    if parts and not by_name and shared:
        raise Difference(f"the layer drops values {len(drawn)} times, the module less often")


def _drop(name: str, module: Any, drawn: list[Drawn], x: Tensor) -> Tensor:
    """Return `x` · mask / (1 - p), with the next of the masks."""
    if not drawn:
        raise Difference(f"dropout `{name}` of the module has no counterpart in the layer")
    call = drawn.pop(0)
    _check_drawn(name, module, call, x)
    kept: Tensor = x * call.mask / (1 - module.p)
    return kept


def _check_drawn(name: str, module: Any, drawn: Drawn, x: Tensor) -> None:
    """Raise Difference where masks of the layer can't be those of the module's kind."""
    dropped = f"dropout `{name}`" if name else "the dropout"
    if drawn.mask.shape != x.shape:
        raise Difference(
            f"{dropped} of the module has an input of shape {tuple(x.shape)}, the layer's one of "
            f"shape {tuple(drawn.mask.shape)}"
        )
    if drawn.is_shared and drawn.unit and getattr(module, "mode", "row") != "batch":
        raise Difference(f"{dropped} of the layer has one mask for all examples")
    unit = _UNITS.get(type(module), "example")
    if drawn.unit not in ("", unit):
        raise Difference(f"{dropped} drops each {drawn.unit} in the layer, {unit} in the module")
    if abs(drawn.share - (1 - module.p)) > DEVIATIONS * drawn.deviation:
        raise Difference(
            f"{dropped} keeps {1 - module.p:.3g} of its values in the module, and "
            f"{drawn.share:.3g} in the layer"
        )


def training_key(key: Tensor, step: int) -> Tensor:
    """Return the key that `train.make_train_step` gives the network in a step."""
    return random.fold_in(random.split(key)[1], step)
