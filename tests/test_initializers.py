"""Initialisers have the bounds and spreads of `torch.nn.init`, and the key decides the numbers."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from funcnets import initializers, random

KEY = random.key(5)
SHAPE = (48, 32, 3, 5)


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(1, 4), max_size=2))
@settings(max_examples=30)
def test_fans_are_torchs(outputs, inputs, kernel):
    shape = (outputs, inputs, *kernel)
    expected = nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert initializers.fans(shape) == expected


def test_fans_need_two_dimensions():
    with pytest.raises(ValueError, match=r"\(out, in, \*kernel\)"):
        initializers.fans((3,))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (initializers.xavier_uniform(), nn.init.xavier_uniform_),
        (initializers.xavier_uniform(2.0), lambda leaf: nn.init.xavier_uniform_(leaf, 2.0)),
        (initializers.xavier_normal(), nn.init.xavier_normal_),
        (
            initializers.kaiming_uniform(),
            partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
        ),
        (initializers.kaiming_normal(), lambda x: nn.init.kaiming_normal_(x, nonlinearity="relu")),
        (
            initializers.kaiming_normal("fan_out"),
            lambda x: nn.init.kaiming_normal_(x, mode="fan_out", nonlinearity="relu"),
        ),
        (initializers.lecun_normal(), lambda x: nn.init.normal_(x, std=480**-0.5)),
        (initializers.lecun_uniform(), lambda x: nn.init.uniform_(x, -(160**-0.5), 160**-0.5)),
        (
            initializers.truncated_normal(0.5),
            partial(nn.init.trunc_normal_, std=0.5, a=-1, b=1),
        ),
        (initializers.normal(0.5), lambda x: nn.init.normal_(x, std=0.5)),
        (initializers.uniform(0.5), lambda x: nn.init.uniform_(x, -0.5, 0.5)),
    ],
)
def test_spread_is_torchs(ours, theirs):
    actual = ours(KEY, SHAPE, torch.float64)
    expected = torch.empty(SHAPE, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs(expected)
    assert actual.dtype == torch.float64
    assert actual.std() == pytest.approx(float(expected.std()), rel=0.03)
    assert abs(actual.mean()) < 0.02 * expected.abs().max()
    if expected.abs().max() < 2 * expected.std():
        assert actual.abs().max() == pytest.approx(float(expected.abs().max()), rel=0.01)


def test_orthogonal_rows_or_columns():
    for shape in ((6, 4), (4, 6), (4, 2, 3, 3)):
        matrix = initializers.orthogonal(1.5)(KEY, shape, torch.float64).flatten(1)
        small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        product = small @ small.T / 1.5**2
        torch.testing.assert_close(product, torch.eye(len(small), dtype=torch.float64))


@pytest.mark.parametrize(
    ("initializer", "value"),
    [(initializers.zeros(), 0), (initializers.ones(), 1), (initializers.constant(2.5), 2.5)],
)
def test_constants(initializer, value):
    assert (initializer(KEY, (3, 2), torch.bfloat16) == value).all()


def test_the_key_decides():
    draw = initializers.xavier_uniform()
    assert torch.equal(draw(KEY, (3, 4), torch.float32), draw(KEY, (3, 4), torch.float32))
    assert not torch.equal(
        draw(KEY, (3, 4), torch.float32), draw(random.key(6), (3, 4), torch.float32)
    )


def test_the_bounds_of_a_layer():
    bound = math.sqrt(6 / (12 + 8))
    assert initializers.xavier_uniform()(KEY, (8, 12), torch.float64).abs().max() <= bound
