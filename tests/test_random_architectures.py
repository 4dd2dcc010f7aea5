"""Networks that nobody would draw: all layers and combinators in any order equal plain modules."""

import ast

import pytest
import strategies
import torch
from architectures import KINDS, Parts, functional, modular
from comparison import assert_equals_twin, pair
from hypothesis import Phase, find, given, settings
from torch import Tensor

from funcnets import layers, tree
from funcnets.core import Layer

# The `soak` profile asks for more.
EXAMPLES = max(300, settings().max_examples)


@given(drawn=strategies.architectures(), seed=strategies.seeds)
@settings(max_examples=EXAMPLES)
def test_random_architecture_equals_its_module(
    drawn: tuple[Parts, tuple[int, ...]], seed: int
) -> None:
    parts, shape = drawn
    net = functional(parts)
    module, _ = modular(parts, torch.zeros(1, *shape[1:]))
    both = pair(net, module, shape, seed)
    params, state = net.init(both.key, both.x)
    assert tree.map(Tensor.size, params) == tree.map(Tensor.size, both.params)
    assert tree.map(Tensor.size, state) == tree.map(Tensor.size, both.state)
    assert_equals_twin(both)


def kinds(parts: Parts) -> set[str]:
    """The kinds of layers and combinators in a network, at any depth."""
    below = [
        inner
        for _, options in parts
        for inner in (options.get("main"), options.get("shortcut"), *options.get("parts", []))
        if inner
    ]
    return {kind for kind, _ in parts}.union(*map(kinds, below))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_drawn_and_replayed(kind: str) -> None:
    def contains(drawn: tuple[Parts, tuple[int, ...]]) -> bool:
        return kind in kinds(drawn[0])

    once = settings(phases=[Phase.generate], database=None, max_examples=500)
    parts, shape = find(strategies.architectures(), contains, settings=once)
    replayed = ast.literal_eval(repr(parts))
    assert replayed == parts
    assert modular(replayed, torch.zeros(shape))[1].isfinite().all()


def test_every_layer_and_combinator_is_a_kind() -> None:
    constructors = {
        name
        for name, value in vars(layers).items()
        if getattr(value, "__annotations__", {}).get("return") is Layer
        and name[0] != "_"
        and name not in ("noise_of_rows", "leaf", "function_layer")
    }
    assert constructors | {"sequential", "residual", "concat", "dense"} == KINDS
