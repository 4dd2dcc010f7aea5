"""The Laplace approximation, against dense matrices built from its definition, in float64."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacrev

import funcnets
from funcnets import losses, random, tree
from funcnets.core import sequential
from funcnets.layers import batch_norm, conv2d, dropout, flatten, linear, sigmoid
from funcnets.testing import assert_close, random_values
from funcnets.transforms import laplace

KEY = random.key(2)
X = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 2, 0, 1])
NET = sequential(
    conv=conv2d(2, 3), bn=batch_norm(), act=sigmoid(), drop=dropout(), flat=flatten(), fc=linear(3)
)
PARAMS, STATE = random_values(NET, X, 1)
BATCHES = [(X[:4], LABELS[:4]), (X[4:], LABELS[4:])]


def everything(params: Any, x: Tensor) -> Tensor:
    return NET.apply(params, STATE, x)[0]


def last_layer(head: Any, x: Tensor) -> Tensor:
    return NET.apply({**PARAMS, "fc": head}, STATE, x)[0]


CASES = [(everything, PARAMS), (last_layer, PARAMS["fc"])]


def flat(values: Any) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree.leaves(values)])


def dense_jacobian(model: Any, params: Any) -> Tensor:
    """The logits' Jacobian, (N, K, P), of the batch as a whole."""
    by_leaf = jacrev(lambda params: model(params, X))(params)
    return torch.cat([leaf.flatten(2) for leaf in tree.leaves(by_leaf)], dim=2)


def dense_curvature(model: Any, params: Any) -> Tensor:
    jacobian = dense_jacobian(model, params)
    rows = zip(jacobian, model(params, X), LABELS, strict=True)
    return sum(
        j.T @ hessian(lambda z, label=label: losses.cross_entropy(z[None], label[None]))(logits) @ j
        for j, logits, label in rows
    )


@pytest.mark.parametrize(("model", "params"), CASES, ids=["everything", "last layer"])
def test_curvature_is_the_gauss_newton_matrix_summed_over_examples(model: Any, params: Any) -> None:
    expected = dense_curvature(model, params)
    full = laplace.fit(model, params, BATCHES, structure="full")
    diagonal = laplace.fit(model, params, BATCHES)
    assert_close({"full": full.curvature}, {"full": expected})
    assert_close({"diagonal": diagonal.curvature}, {"diagonal": expected.diagonal()})
    likelihood = -losses.cross_entropy(model(params, X), LABELS, reduction="sum")
    assert float(full.log_likelihood) == pytest.approx(float(likelihood), rel=1e-12)


def test_the_last_layer_has_the_hessian_itself() -> None:
    """The logits are linear in its parameters, so that nothing is left out."""
    weight = PARAMS["fc"]["weight"]

    def loss(weight: Tensor) -> Tensor:
        head = {**PARAMS["fc"], "weight": weight}
        return losses.cross_entropy(last_layer(head, X), LABELS, reduction="sum")

    expected = hessian(loss)(weight).reshape(weight.numel(), weight.numel())
    found = laplace.fit(last_layer, PARAMS["fc"], BATCHES, structure="full").curvature
    # The bias comes before the weight, by name.
    assert_close({"full": found[-len(expected) :, -len(expected) :]}, {"full": expected})


def test_a_batch_is_observed_alike_under_jit() -> None:
    observe = partial(laplace.curvature_and_log_likelihood, everything, structure="diagonal")
    jitted = funcnets.jit(observe, backend="graph")
    for actual, expected in zip(jitted(PARAMS, X, LABELS), observe(PARAMS, X, LABELS), strict=True):
        assert_close({"value": actual}, {"value": expected})


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_logits_have_the_covariance_of_the_linearised_network(structure: Any) -> None:
    fitted = laplace.fit(everything, PARAMS, BATCHES, structure=structure)
    matrix = fitted.curvature if structure == "full" else fitted.curvature.diag()
    inverse = torch.linalg.inv(matrix + 0.5 * torch.eye(len(matrix), dtype=matrix.dtype))
    jacobian = dense_jacobian(everything, PARAMS)
    expected = torch.einsum("nkp,pq,njq->nkj", jacobian, inverse, jacobian)

    def predict(fitted: Any, x: Tensor) -> Any:
        return laplace.logit_distribution(fitted, everything, x, 0.5)

    for run in (predict, funcnets.jit(predict, backend="graph")):
        mean, covariance = run(fitted, X)
        assert_close({"mean": mean}, {"mean": everything(PARAMS, X)})
        assert_close({"covariance": covariance}, {"covariance": expected})


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_evidence_is_the_integral_of_the_gaussian(structure: Any) -> None:
    fitted = laplace.fit(last_layer, PARAMS["fc"], BATCHES, structure=structure)
    matrix = fitted.curvature if structure == "full" else fitted.curvature.diag()
    precision = 0.3
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    mean = flat(PARAMS["fc"])
    # log of N(mean; 0, 1/precision) · likelihood · √((2π)^P / det(posterior precision))
    two_pi = torch.tensor(2 * torch.pi, dtype=matrix.dtype)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros_like(mean), precision_matrix=precision * identity
    ).log_prob(mean)
    volume = (len(mean) * two_pi.log() - torch.logdet(matrix + precision * identity)) / 2
    expected = fitted.log_likelihood + prior + volume
    assert float(laplace.log_evidence(fitted, precision)) == pytest.approx(
        float(expected), rel=1e-9
    )


def test_probit_and_monte_carlo_predictions() -> None:
    mean = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    certain, uncertain = torch.zeros(1, 3, 3).double(), 4 * torch.eye(3)[None].double()
    sampled = partial(laplace.monte_carlo, key=KEY, samples=20000)
    for predict in (laplace.probit, sampled):
        torch.testing.assert_close(predict(mean, certain), mean.softmax(1))
        probabilities = predict(mean, uncertain)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(1).double())
        assert probabilities.argmax() == 0
        assert probabilities[0, 0] < mean.softmax(1)[0, 0]
    expected = (mean / (1 + torch.pi / 8 * 4) ** 0.5).softmax(1)
    torch.testing.assert_close(laplace.probit(mean, uncertain), expected)
    noise = torch.randn(20000, 3, generator=torch.Generator().manual_seed(1)).double()
    exact = (mean + 2 * noise).softmax(1).mean(0)
    torch.testing.assert_close(sampled(mean, uncertain)[0], exact, atol=0.01, rtol=0)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="no structure 'kron', expected diagonal or full"):
        laplace.fit(everything, PARAMS, BATCHES, structure="kron")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got no batches"):
        laplace.fit(everything, PARAMS, [])
    fitted = laplace.fit(last_layer, PARAMS["fc"], BATCHES)
    with pytest.raises(ValueError, match="precision is -1, expected a positive number"):
        laplace.logit_distribution(fitted, last_layer, X, -1)
    with pytest.raises(ValueError, match="params has no leaves"):
        laplace.fit(everything, {}, BATCHES)
    with pytest.raises(ValueError, match=r"got a Tensor for a batch, .* as in \[\(x, labels\)\]"):
        laplace.fit(everything, PARAMS, BATCHES[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0 samples, expected at least 1"):
        laplace.monte_carlo(X[:, 0], X, KEY, samples=0)
