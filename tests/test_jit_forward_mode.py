"""Forward-mode derivatives under `jit`: of parts of tensors, and where values are infinite."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

from funcnets import _torch, jit

pytestmark = pytest.mark.usefixtures("verified")

BASE = torch.arange(40.0, dtype=torch.float64).view(10, 4).sin()
PARTS = {
    "slice": BASE[2:6],
    "member": BASE.view(2, 5, 4)[1],
    "transposed": BASE.T,
    "every second": BASE[::2, ::2],
}


@pytest.fixture(params=["own recorder", "make_fx"])
def recorder(request, monkeypatch):
    """Each of the two ways to record a function."""
    monkeypatch.setattr(_torch, "is_known_version", lambda: request.param == "own recorder")


def along(function, *arguments):
    return jvp(function, arguments, tuple(torch.ones_like(each) for each in arguments))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_an_argument_that_is_part_of_another_tensor(part, recorder):
    def function(x):
        return along(lambda x: x.t().reshape(-1).view(2, -1).sin().sum(1), x)

    torch.testing.assert_close(jit(function, backend="graph")(part), function(part))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_captured_part_of_another_tensor(part):
    def function(x):
        value, tangent = along(lambda c: (c.t() * c.t().exp()).unsqueeze(0).sum((0, 1)), part)
        return value * x, tangent

    given = torch.ones(len(part), dtype=torch.float64)
    torch.testing.assert_close(jit(function, backend="graph")(given), function(given))


def test_a_part_that_is_given_twice():
    def function(x, y):
        return along(lambda x: (x.view(-1) * 2).sum() + y.sum(), x)

    part = BASE[2:6]
    expected = function(part, part)
    torch.testing.assert_close(jit(function, backend="graph")(part, part), expected)


def masked_softmax(x, y):
    return torch.softmax(x.masked_fill(x > 0, -torch.inf) * 0.5, 0)


def masked_weights(x, y):
    weights = torch.where(x > 0, torch.inf, y)
    return torch.minimum(weights * 2 - 1, y).exp()


def quotient(x, y):
    return (y.masked_fill(x > 0, torch.inf) / (x.masked_fill(x > 0, torch.inf) + 1)).sin()


def product_with_a_constant(x, y):
    return (x.detach() + y.detach() * 0 + 1).masked_fill(x > 0, torch.inf) * x.tanh().detach()


def dot(x, y):
    return torch.dot(x.masked_fill(x > 0, torch.inf).detach(), y.detach()) + x.sum()


def cross(x, y):
    return torch.linalg.cross(x[:3].masked_fill(x[:3] > 0, torch.inf), y[:3])


FUNCTIONS = [
    masked_softmax,
    masked_weights,
    quotient,
    product_with_a_constant,
    dot,
    cross,
]


def only_first(function, x, y):
    return jvp(lambda x: function(x, y), (x,), (torch.ones_like(x),))


def only_second(function, x, y):
    return jvp(lambda y: function(x, y), (y,), (torch.ones_like(y),))


def batched(function, x, y):
    return vmap(lambda x, y: only_first(function, x, y))(x.expand(2, -1), y.expand(2, -1))


def of_gradient(function, x, y):
    return jvp(grad(lambda x: function(x, y).sum()), (x,), (torch.ones_like(x),))


def curvature(function, x, y):
    return hessian(lambda x: function(x, y).sum())(x)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("derivative", [only_first, only_second, batched, of_gradient, curvature])
def test_zero_times_infinity_is_absent_where_there_is_no_tangent(function, derivative, recorder):
    x, y = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64) * 2
    x[0] = 1

    def transformed(x, y):
        return derivative(function, x, y)

    expected = transformed(x, y)
    actual = jit(transformed, backend="graph")(x, y)
    torch.testing.assert_close(actual, expected, equal_nan=True)
