"""Integers, classes and choices by a key: those of JAX, and of the right distribution."""

import json
from pathlib import Path

import pytest
import torch
from test_random import TYPES, digest, tensor_of

import funcnets
from funcnets import random

JAX = json.loads(Path(__file__).with_name("jax_recordings.json").read_text())["distributions"]
KEY = random.key(JAX["seed"])
# Largest difference from JAX, in units in the last place where it is a whole number.  A Gumbel
# number near 0 is the logarithm of one near 1, so only its absolute error says something.
ROUNDING: dict[tuple[str, str], int | float] = {
    ("exponential", "float64"): 128,
    ("exponential", "float32"): 1,
    ("exponential", "float16"): 0,
    ("exponential", "bfloat16"): 0,
    ("gumbel", "float64"): 2e-15,
    ("gumbel", "float32"): 5e-7,
    ("gumbel", "float16"): 8,
    ("gumbel", "bfloat16"): 0,
}


def places(numbers):
    """Return whole numbers of which two are apart by the units in the last place between them."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[numbers.dtype.itemsize]
    word = numbers.view(bits)
    return torch.where(word < 0, torch.iinfo(bits).min - word, word).long()


@pytest.mark.parametrize("record", JAX["randint"], ids=lambda record: str(record["range"]))
def test_integers_are_jax(record):
    drawn = random.randint(KEY, (40,), *record["range"])
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == record["values"]

    assert digest(random.randint(KEY, (3000,), *record["range"]).int()) == record["digest"]


@pytest.mark.parametrize(("name", "dtype"), ROUNDING)
def test_gumbel_and_exponential_are_jax_to_rounding(name, dtype):
    drawn = getattr(random, name)(KEY, (60,), TYPES[dtype])
    expected = tensor_of(JAX[name][dtype], TYPES[dtype])
    assert drawn.dtype == TYPES[dtype]
    rounding = ROUNDING[name, dtype]
    if isinstance(rounding, float):
        torch.testing.assert_close(drawn, expected, rtol=0, atol=rounding)
        return
    assert (places(drawn) - places(expected)).abs().max() <= rounding
    if rounding == 0:
        many = getattr(random, name)(KEY, (3000,), TYPES[dtype])
        assert digest(many) == JAX["exact"][name][dtype]


def test_classes_and_choices_are_jax():
    logits, p = torch.tensor(JAX["logits"]).reshape(3, 7), torch.tensor(JAX["p"])
    assert random.categorical(KEY, logits, shape=(20, 3)).tolist() == JAX["categorical"]
    assert random.categorical(KEY, logits, axis=0).tolist() == JAX["categorical_0"]
    assert digest(random.categorical(KEY, logits, shape=(3000, 3)).int()) == JAX["many_classes"]
    assert digest(random.choice(KEY, 5, (3000,), p=p).int()) == JAX["many_choices"]
    assert random.choice(KEY, 5, (4, 10)).tolist() == JAX["choice"]
    assert random.choice(KEY, 5, (4, 10), p=p).tolist() == JAX["choice_p"]
    assert random.choice(KEY, 5, (4,), p=p, replace=False).tolist() == JAX["choice_p_once"]


def test_means_are_those_of_the_distributions():
    n = 40_000
    assert abs(random.exponential(KEY, (n,)).mean() - 1) < 0.03
    assert abs(random.gumbel(KEY, (n,)).mean() - 0.5772) < 0.03
    assert abs(random.randint(KEY, (n,), -3, 4).double().mean()) < 0.05
    assert random.randint(KEY, (n,), -(2**31), 2**31).double().mean().abs() < 2**25
    classes = random.categorical(KEY, torch.tensor([0.2, 0.8]).log(), shape=(n,))
    assert abs(classes.double().mean() - 0.8) < 0.02


def test_rows_are_chosen_once_or_with_replacement():
    rows = torch.arange(12).reshape(6, 2)
    assert sorted(random.choice(KEY, rows, (6,), replace=False)[:, 0].tolist()) == [
        *range(0, 12, 2)
    ]
    assert random.choice(KEY, rows, (3, 4)).shape == (3, 4, 2)
    assert random.choice(KEY, 9).shape == ()


@pytest.mark.parametrize("backend", ["graph", "native"])
@pytest.mark.parametrize("replace", [True, False])
def test_choices_of_given_probability_under_vmap_and_jit(replace, backend):
    probabilities = torch.tensor([JAX["p"], JAX["p"][::-1]])
    rows, keys = torch.arange(20).reshape(2, 5, 2), random.split(KEY, 2)

    def draw(key, p, rows):
        return random.choice(key, rows, (3,), p=p, replace=replace)

    looped = torch.stack([draw(*each) for each in zip(keys, probabilities, rows, strict=True)])
    mapped = torch.func.vmap(draw)
    assert torch.equal(mapped(keys, probabilities, rows), looped)
    alone = funcnets.jit(draw, backend=backend)(keys[1], probabilities[1], rows[1])
    assert torch.equal(alone, looped[1])
    both = funcnets.jit(mapped, backend=backend)(keys, probabilities, rows)
    assert torch.equal(both, looped)
    one_key = torch.func.vmap(draw, in_dims=(None, 0, 0))(keys[0], probabilities, rows)
    assert torch.equal(one_key[0], looped[0])


@pytest.mark.parametrize("transform", ["vmap", "jit"])
def test_draws_under_transforms_are_the_same(transform):
    logits = torch.tensor([[0.0, 1.0, -1.0]])

    def draws(key):
        once = random.choice(key, 5, (3,), replace=False)
        numbers = random.randint(key, (4,), 0, 10), random.exponential(key, (2,))
        return (*numbers, random.categorical(key, logits, shape=(4, 1)), once)

    keys = random.split(KEY, 2)
    looped = [draws(key) for key in keys]
    if transform == "vmap":
        drawn = torch.func.vmap(draws)(keys)
    else:
        jitted = funcnets.jit(draws, backend="graph")
        drawn = [torch.stack(each) for each in zip(*map(jitted, keys), strict=True)]
    for actual, expected in zip(drawn, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(actual, torch.stack(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random.randint(KEY, (2,), 3, 3), "minval < maxval <= 2.*got 3 and 3"),
        (lambda: random.randint(KEY, (2,), 0, 2**32), "got 0 and 4294967296"),
        (lambda: random.choice(KEY, 0), "can't draw 1 of 0 elements"),
        (lambda: random.choice(KEY, 2, (3,), replace=False), "3 of 2 elements, each at most once"),
        (lambda: random.choice(KEY, 2, p=torch.ones(3)), r"p has shape \(3,\), expected \(2,\)"),
        (
            lambda: random.categorical(KEY, torch.ones(3, 2), shape=(2,)),
            r"shape is \(2,\); expected one that ends in \(3,\)",
        ),
    ],
)
def test_impossible_draws_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
