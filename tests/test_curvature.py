"""Curvature products and estimates, against dense Hessians of small networks in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from torch import Tensor
from torch.func import hessian, jacrev, jvp, vjp

import funcnets
from funcnets import losses, random, tree
from funcnets.core import Layer, rewrite, sequential
from funcnets.layers import batch_norm, conv2d, dropout, flatten, linear, sigmoid
from funcnets.testing import Architecture, assert_close, random_values, strategies
from funcnets.transforms import curvature, remat

KEY = random.key(3)
X = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 2])
NET = sequential(
    conv=conv2d(2, 3),
    bn=batch_norm(),
    act=sigmoid(),
    drop=dropout(0.3),
    flat=flatten(),
    fc=linear(3),
)
PARAMS, STATE = random_values(NET, X, 1)
VECTOR = tree.map(torch.cos, PARAMS)
cross_entropy = partial(losses.cross_entropy, labels=LABELS)


def logits(params: Any, net: Layer = NET) -> Tensor:
    return net.apply(params, STATE, X, train=True, key=KEY)[0]


def loss(params: Any) -> Tensor:
    return cross_entropy(logits(params))


def flat(values: Any) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree.leaves(values)])


def dense(function: Callable[[Any], Tensor], params: Any) -> Callable[[Tensor], Tensor]:
    """`function` of the parameters as one vector."""
    leaves, structure = tree.flatten(params)

    def of_vector(vector: Tensor) -> Tensor:
        parts = vector.split([leaf.numel() for leaf in leaves])
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return function(tree.unflatten(shaped, structure))

    return of_vector


HESSIAN = hessian(dense(loss, PARAMS))(flat(PARAMS))
product = partial(curvature.hessian_product, loss, PARAMS)


def assert_equal_vectors(actual: Tensor, expected: Tensor) -> None:
    assert_close({"vector": actual}, {"vector": expected})


@pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
@pytest.mark.parametrize("backend", [None, "graph"])
def test_hessian_product_is_that_of_the_dense_hessian(mode: Any, backend: Any) -> None:
    def multiply(params: Any, vector: Any) -> Any:
        return curvature.hessian_product(loss, params, vector, mode=mode)

    run = funcnets.jit(multiply, backend=backend) if backend else multiply
    assert_equal_vectors(flat(run(PARAMS, VECTOR)), HESSIAN @ flat(VECTOR))


@pytest.mark.parametrize("backend", [None, "graph"])
def test_gauss_newton_product_is_that_of_the_dense_matrix(backend: Any) -> None:
    def multiply(params: Any, vector: Any) -> Any:
        return curvature.gauss_newton_product(logits, cross_entropy, params, vector)

    run = funcnets.jit(multiply, backend=backend) if backend else multiply
    jacobian = jacrev(dense(logits, PARAMS))(flat(PARAMS)).flatten(0, 1)
    of_loss = hessian(lambda z: cross_entropy(z.reshape(4, 3)))(logits(PARAMS).flatten())
    expected = jacobian.T @ (of_loss @ (jacobian @ flat(VECTOR)))
    assert_equal_vectors(flat(run(PARAMS, VECTOR)), expected)


def test_jacobian_products_are_those_of_the_dense_jacobian() -> None:
    jacobian = jacrev(dense(logits, PARAMS))(flat(PARAMS))
    _, along = jvp(logits, (PARAMS,), (VECTOR,))
    assert_equal_vectors(along, jacobian @ flat(VECTOR))
    (pulled,) = vjp(logits, PARAMS)[1](along)
    assert_equal_vectors(flat(pulled), torch.einsum("nk,nkp->p", along, jacobian))


@given(drawn=strategies.layers(), seed=strategies.seeds)
@settings(max_examples=10, phases=[Phase.generate])
def test_products_on_random_networks(drawn: Architecture, seed: int) -> None:
    net, shape = drawn.layer(), drawn.shape
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    params, state = random_values(net, x, seed)
    if not tree.leaves(params):
        return
    other = rewrite(net, lambda name, part: remat(part) if name == "part0" else part)

    def objective(net: Layer, params: Any) -> Tensor:
        return net.apply(params, state, x, train=True, key=KEY)[0].sin().sum()

    vector = tree.map(torch.cos, params)
    run = partial(curvature.hessian_product, params=params, vector=vector)
    forward = run(partial(objective, net))
    reverse = run(partial(objective, net), mode="reverse_over_reverse")
    assert_close(tree.flatten_named(forward), tree.flatten_named(reverse))
    assert_close(tree.flatten_named(forward), tree.flatten_named(run(partial(objective, other))))


def test_largest_eigenvalue_with_all_products_is_exact() -> None:
    count = tree.count(PARAMS)
    value, vector = curvature.largest_eigenvalue(product, PARAMS, KEY, iterations=count + 9)
    exact = torch.linalg.eigvalsh(HESSIAN)[-1]
    assert float(value) == pytest.approx(float(exact), rel=1e-9)
    assert float(flat(vector).norm()) == pytest.approx(1, rel=1e-9)
    residual = HESSIAN @ flat(vector) - value * flat(vector)
    assert residual.norm() < 1e-6 * value


def quadratic(params: Any) -> Tensor:
    """Of the same Hessian as the loss, and quicker to trace again and again."""
    return flat(params) @ HESSIAN @ flat(params) / 2


def test_a_few_products_come_near_from_below_and_jit() -> None:
    exact = float(torch.linalg.eigvalsh(HESSIAN)[-1])

    def sharpness(params: Any, key: Tensor, loss: Any, iterations: int) -> Tensor:
        along = partial(curvature.hessian_product, loss, params)
        return curvature.largest_eigenvalue(along, params, key, iterations=iterations).value

    near = float(sharpness(PARAMS, KEY, loss, 8))
    assert 0.9 * exact < near <= exact * (1 + 1e-9)
    few, vector = partial(sharpness, loss=quadratic, iterations=3), {"all": flat(PARAMS)}
    jitted = funcnets.jit(few, backend="graph")
    assert float(jitted(vector, KEY)) == pytest.approx(float(few(vector, KEY)), rel=1e-9)


def test_a_matrix_that_kills_the_rest_of_the_space() -> None:
    like = {"a": torch.zeros(4, dtype=torch.float64)}
    value, vector = curvature.largest_eigenvalue(
        lambda v: {"a": 3 * v["a"]}, like, KEY, iterations=4
    )
    assert float(value) == pytest.approx(3)
    assert vector["a"].isfinite().all()


def test_the_trace_is_the_mean_of_forms_with_the_dense_hessian_also_under_jit() -> None:
    signs = [flat(curvature.rademacher_like(random.fold_in(KEY, i), PARAMS)) for i in range(3)]
    forms = torch.stack([sign @ HESSIAN @ sign for sign in signs])

    def estimate(params: Any, key: Tensor, loss: Any = quadratic) -> Any:
        along = partial(curvature.hessian_product, loss, params)
        return curvature.hutchinson_trace(along, params, key, samples=3)

    for run in (partial(estimate, loss=loss), funcnets.jit(estimate, backend="graph")):
        value, error = run(PARAMS, KEY)
        assert float(value) == pytest.approx(float(forms.mean()), rel=1e-9)
        assert float(error) == pytest.approx(float(forms.std() / 3**0.5), rel=1e-9)


def test_the_trace_lies_within_its_error() -> None:
    value, error = curvature.hutchinson_trace(product, PARAMS, KEY, samples=32)
    assert abs(float(value - HESSIAN.trace())) < 4 * float(error)
    assert float(error) < 0.5 * float(HESSIAN.trace().abs()) + 1


def test_the_trace_of_a_diagonal_matrix_is_exact() -> None:
    scales = tree.map(torch.exp, PARAMS)
    value, error = curvature.hutchinson_trace(
        lambda v: tree.map(torch.mul, scales, v), PARAMS, KEY, samples=3
    )
    assert float(value) == pytest.approx(float(flat(scales).sum()), rel=1e-12)
    assert float(error) < 1e-10


def test_signs_are_ones_of_both_kinds_and_differ_between_leaves() -> None:
    signs = curvature.rademacher_like(KEY, {"a": torch.zeros(500), "b": torch.zeros(500)})
    assert set(signs["a"].tolist()) == {-1.0, 1.0}
    assert abs(signs["a"].mean()) < 0.2
    assert not torch.equal(signs["a"], signs["b"])


FEWER = {name: part for name, part in PARAMS.items() if name != "bn"}
NARROW = {**PARAMS, "fc": tree.map(lambda leaf: leaf[:2], PARAMS["fc"])}
ROUGH = tree.map(torch.Tensor.float, VECTOR)


PRODUCTS = {
    "forward": product,
    "reverse": partial(product, mode="reverse_over_reverse"),
    "gauss_newton": partial(curvature.gauss_newton_product, logits, cross_entropy, PARAMS),
}


@pytest.mark.parametrize("multiply", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (FEWER, r"`bn.bias` is missing in the vector, expected torch.float64 \(2,\) on cpu"),
        (NARROW, r"`fc.bias` is .* \(2,\) .* expected .* \(3,\) .*rademacher_like"),
        (ROUGH, r"`bn.bias` is torch.float32 .* in the vector, expected torch.float64"),
    ],
)
def test_a_vector_unlike_the_parameters_is_named_by_leaf(
    multiply: Any, vector: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        multiply(vector)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: product({}), "missing in the vector"),
        (lambda: curvature.hessian_product(loss, {}, {}), "parameters is empty, expected one leaf"),
        (lambda: curvature.hutchinson_trace(dict, {}, KEY), "parameters is empty"),
        (lambda: curvature.largest_eigenvalue(dict, {}, KEY), "parameters is empty"),
        (lambda: curvature.dot({}, {}), "parameters is empty"),
        (
            lambda: curvature.hutchinson_trace(lambda vector: FEWER, PARAMS, KEY),
            "`bn.bias` is missing in the second tree",
        ),
        (
            lambda: curvature.largest_eigenvalue(lambda vector: FEWER, PARAMS, KEY),
            "`bn.bias` is missing in the product",
        ),
        (
            lambda: curvature.hessian_product(logits, PARAMS, VECTOR),
            r"the loss has shape \(4, 3\), expected a number .* mean or its sum",
        ),
        (
            lambda: curvature.gauss_newton_product(
                logits, partial(cross_entropy, reduction="none"), PARAMS, VECTOR
            ),
            r"the loss has shape \(4,\)",
        ),
        (lambda: product(VECTOR, mode="forward"), "no mode 'forward', expected forward_over"),
        (lambda: curvature.hutchinson_trace(product, PARAMS, KEY, samples=1), "got 1 samples"),
        (
            lambda: curvature.largest_eigenvalue(product, PARAMS, KEY, iterations=0),
            "got 0 iterations",
        ),
    ],
)
def test_misuse(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_eigenvalues_of_parameters_of_half_and_of_several_precisions(dtype):
    dtypes = (dtype or torch.bfloat16, dtype or torch.float64)
    like = {"a": torch.zeros(2, dtype=dtypes[0]), "b": torch.zeros(1, dtype=dtypes[1])}

    def product(vector):
        return {"a": vector["a"] * 2, "b": vector["b"] * 5}

    value, vector = curvature.largest_eigenvalue(product, like, random.key(0), iterations=3)
    assert float(value) == pytest.approx(5, rel=2e-2)
    assert tree.difference(vector, like) is None


def test_products_do_not_depend_on_the_order_of_names():
    def loss(params):
        return (params["a"] ** 2).sum() * params["b"].sum() ** 3

    params = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    vector = {"a": torch.tensor([0.5, -1.0]), "b": torch.tensor([2.0])}
    turned = dict(reversed(vector.items()))
    for mode in ("forward_over_reverse", "reverse_over_reverse"):
        expected = curvature.hessian_product(loss, params, vector, mode=mode)
        actual = curvature.hessian_product(loss, params, turned, mode=mode)
        assert all(torch.equal(actual[name], expected[name]) for name in params)
    expected = curvature.gauss_newton_product(loss, lambda y: y**2, params, vector)
    actual = curvature.gauss_newton_product(loss, lambda y: y**2, params, turned)
    assert all(torch.equal(actual[name], expected[name]) for name in params)
