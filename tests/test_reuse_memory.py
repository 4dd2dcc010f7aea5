"""Results written over values that are done with: the same numbers, and nothing else is changed."""

import hypothesis
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

import funcnets
from funcnets import random

pytestmark = pytest.mark.usefixtures("verified")

aten = torch.ops.aten
ONE = [
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    torch.exp,
    lambda x: aten.mul.Scalar(x, 2.0),
    lambda x: aten.div.Scalar(x, 2.0),
    lambda x: x.T,
    lambda x: x.flatten().view(x.shape),
    lambda x: x[:1].expand(x.shape),
    lambda x: x.flip(0).sin(),
]
TWO = [
    torch.add,
    torch.sub,
    torch.mul,
    lambda x, y: x / (y.abs() + 1),
    lambda x, y: torch.addcmul(x, y, y),
    lambda x, y: torch.addcmul(y[0], x, y),
    lambda x, y: torch.lerp(x, y, 0.3),
    lambda x, y: aten.sigmoid_backward(x, y),
    lambda x, y: aten.tanh_backward(x, y),
    lambda x, y: aten.threshold_backward(x, y, 0),
]
steps = st.lists(
    st.tuples(st.sampled_from(ONE) | st.sampled_from(TWO), st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=12,
)


def program(drawn, outputs, captured):
    """A function that computes by steps, each from two values not long before it."""

    def function(*values):
        values = [captured, captured.T, *values]
        for step, first, second in drawn:
            operands = [values[-1 - min(back, len(values) - 1)] for back in (first, second)]
            values.append(step(*operands[: 2 if step in TWO else 1]))
        return [values[-1 - min(back, len(values) - 1)].clone() for back in outputs]

    return function


@settings(max_examples=25)
@hypothesis.given(steps, st.lists(st.integers(0, 8), min_size=2, max_size=2), st.booleans())
def test_programs_give_the_same_numbers(drawn, outputs, donate):
    given = [random.normal(random.key(seed), (3, 3), torch.float64) for seed in (0, 1, 2)]
    before = [tensor.clone() for tensor in given]
    *arguments, captured = given
    function = program(drawn, outputs, captured)
    expected = function(*arguments)
    jitted = funcnets.jit(function, backend="graph", donate_argnums=(0, 1) if donate else ())
    for _ in range(2):
        given_away = [argument.clone() for argument in arguments] if donate else arguments
        torch.testing.assert_close(jitted(*given_away), expected, rtol=1e-9, atol=1e-9)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_a_view_of_what_was_captured_is_left_alone():
    captured = torch.ones(2, 3)
    jitted = funcnets.jit(lambda x: captured.unbind()[0].mul(x).relu(), backend="graph")
    for _ in range(2):
        torch.testing.assert_close(jitted(torch.full((3,), 2.0)), torch.full((3,), 2.0))


def operations(function, *arguments, **options):
    """The names of the operations that are run."""
    jitted = funcnets.jit(function, backend="graph", **options)
    jitted(*arguments)
    (executable,) = jitted._executables.values()
    names = [node.target for node in executable.trace.graph.graph.nodes if node.op[:4] == "call"]
    return [str(name).removeprefix("aten.") for name in names]


def test_a_chain_is_computed_in_place():
    x = torch.ones(3, 3)
    chain = operations(lambda x: torch.relu(torch.sigmoid(x * x) + x), x)
    assert chain == ["mul.Tensor", "sigmoid.out", "add.out", "relu_.default"]


def test_a_donated_argument_is_computed_in_its_place():
    x, y = torch.ones(3, 3), torch.ones(3, 3)
    update = operations(lambda x, y: x + y, x, y, donate_argnums=0)
    assert update == ["add.out"]
    # The other one reads what the first would overwrite.
    swap = operations(lambda x, y: (x + y, x - y), x, y, donate_argnums=(0, 1))
    assert swap == ["add.Tensor", "sub.out", "copy_.default"]
