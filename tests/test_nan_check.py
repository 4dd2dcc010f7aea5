"""The first value that isn't finite is found, and its layer is named."""

import pytest
import torch

from funcnets import random
from funcnets.core import LayerError, residual, sequential
from funcnets.layers import batch_norm, conv2d, dropout, flatten, linear, relu
from funcnets.testing import random_like
from funcnets.transforms import NonFiniteError, check_finite

NET = sequential(
    stage=residual(sequential(relu(), conv=conv2d(2, 1), bn=batch_norm()), relu()),
    drop=dropout(),
    flatten=flatten(),
    fc=linear(3),
)
X = random_like(torch.zeros(4, 2, 3, 3, dtype=torch.float64), 0)
KEY = random.key(0)
PARAMS, STATE = NET.init(KEY, X)


def spoiled(values: torch.Tensor, value: float) -> torch.Tensor:
    values = values.clone()
    values.view(-1)[-1] = value
    return values


def test_what_is_finite_passes_unchanged() -> None:
    for train in (True, False):
        expected = NET.apply(PARAMS, STATE, X, train=train, key=KEY)
        actual = check_finite(NET).apply(PARAMS, STATE, X, train=train, key=KEY)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    torch.testing.assert_close(check_finite(NET).init(KEY, X), (PARAMS, STATE), rtol=0, atol=0)


def test_an_input_with_a_nan() -> None:
    message = r"^stage: was given an input of shape .* 1 values .* at \(3, 1, 2, 2\), is nan$"
    with pytest.raises(NonFiniteError, match=message):
        check_finite(NET).apply(PARAMS, STATE, spoiled(X, torch.nan), train=True, key=KEY)


def test_a_parameter_and_a_statistic_that_are_infinite() -> None:
    fc = {**PARAMS["fc"], "weight": spoiled(PARAMS["fc"]["weight"], torch.inf)}
    with pytest.raises(NonFiniteError, match=r"^fc: has a `weight` .* is inf$"):
        check_finite(NET).apply({**PARAMS, "fc": fc}, STATE, X)
    bn = STATE["stage"]["bn"]
    state = {"stage": {"bn": {**bn, "running_var": spoiled(bn["running_var"], -torch.inf)}}}
    with pytest.raises(NonFiniteError, match=r"^stage\.bn: has a `running_var` .* is -inf$"):
        check_finite(NET).apply(PARAMS, state, X)


def test_an_output_that_overflows_under_grad() -> None:
    net = check_finite(sequential(fc=linear(1, bias=False)))

    def loss(params: dict) -> torch.Tensor:
        return net.apply(params, {}, torch.full((1, 4), 1e30))[0].sum()

    with pytest.raises(NonFiniteError, match=r"^fc: gives an output of shape \(1, 1\)"):
        torch.func.grad(loss)({"fc": {"weight": torch.full((1, 4), 1e30)}})


def test_vmap_over_it_is_refused_by_name() -> None:
    def output(x: torch.Tensor) -> torch.Tensor:
        return check_finite(NET).apply(PARAMS, STATE, x[None])[0]

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda x: output(x).sum())(x)

    for function in (output, gradient):
        with pytest.raises(
            LayerError, match=r"^stage: check_finite: values can.t be read.*at a time"
        ):
            torch.func.vmap(function)(X)
