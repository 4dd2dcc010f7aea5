"""Networks that nobody would draw: all layers and combinators in any order equal plain modules."""

import ast

import torch
from hypothesis import Phase, find, given, settings

from funcnets import layers
from funcnets.core import Layer
from funcnets.testing import Architecture, assert_equivalent, random_like, strategies
from funcnets.testing._architectures import KINDS, Parts

EXAMPLES = settings().max_examples * 3 // 5  # the `soak` profile asks for more


@given(drawn=strategies.layers(), seed=strategies.seeds)
@settings(max_examples=EXAMPLES)
def test_random_architecture_equals_its_module(drawn: Architecture, seed: int) -> None:
    once = {"batch_sizes": drawn.shape[:1], "memory_formats": ["contiguous"]}
    assert_equivalent(drawn.layer(), drawn.module(), drawn.shape, seed=seed, **once)


def kinds(parts: Parts) -> set[str]:
    """The kinds of layers and combinators in a network, at any depth."""
    below = [
        inner
        for _, options in parts
        for inner in (options.get("main"), options.get("shortcut"), *options.get("parts", []))
        if inner
    ]
    return {kind for kind, _ in parts}.union(*map(kinds, below))


def test_every_kind_is_drawn_and_replayed() -> None:
    first: dict[str, Architecture] = {}  # with each kind

    def are_all_drawn(drawn: Architecture) -> bool:
        for kind in kinds(drawn.parts):
            first.setdefault(kind, drawn)
        return first.keys() == KINDS

    once = settings(phases=[Phase.generate], database=None, max_examples=1500)
    find(strategies.layers(), are_all_drawn, settings=once)
    for found in {repr(each): each for each in first.values()}.values():
        replayed = Architecture(*ast.literal_eval(repr(tuple(found))))
        assert replayed == found
        assert replayed.module()(random_like(torch.zeros(found.shape), 0)).isfinite().all()


def test_every_layer_and_combinator_is_a_kind() -> None:
    constructors = {
        name
        for name, value in vars(layers).items()
        if getattr(value, "__annotations__", {}).get("return") is Layer
        and name[0] != "_"
        and name not in ("noise_of_rows", "leaf", "function_layer")
    }
    assert constructors | {"sequential", "residual", "concat", "dense"} == KINDS
