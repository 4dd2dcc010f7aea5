"""Curvature of losses over parameter trees: products with Hessians, and what is read off them.

A loss is a function of parameters alone, so a batch, statistics and a key are closed over: the
same key gives the same dropout masks in every product, and training-mode batch norm is part of
the function.  A curvature matrix is never built: it is the function that multiplies by it,
`functools.partial(hessian_product, loss, params)`, and estimators take any such function.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets.core import Params

Product = Callable[[Params], Params]
"""A symmetric linear map from trees like the parameters to trees like the parameters."""

Mode = Literal["forward_over_reverse", "reverse_over_reverse"]


def hessian_product(
    loss: Callable[[Params], Tensor],
    params: Params,
    vector: Params,
    *,
    mode: Mode = "forward_over_reverse",
) -> Params:
    """H v, of the second derivatives H of `loss` at `params`; a tree like them.

    Both modes give the same numbers.  `forward_over_reverse`, the derivative of the gradient along
    v, takes less memory; `reverse_over_reverse`, the gradient of gradient · v, is for functions
    without a forward derivative.

    Raises ValueError for another mode, a loss that isn't 0-d, or a vector that isn't like params.
    Pearlmutter, Fast exact multiplication by the Hessian, 1994.
    """
    _check_alike(vector, params, "the vector")
    gradient = torch.func.grad(_scalar(loss))
    if mode == "forward_over_reverse":
        return torch.func.jvp(gradient, (params,), (vector,))[1]
    if mode == "reverse_over_reverse":
        return torch.func.grad(lambda params: dot(gradient(params), vector))(params)
    raise ValueError(f"no mode {mode!r}, expected forward_over_reverse or reverse_over_reverse")


def gauss_newton_product(
    model: Callable[[Params], Tensor],
    loss: Callable[[Tensor], Tensor],
    params: Params,
    vector: Params,
) -> Params:
    """Jᵀ H J v, with J of `model` at `params` and H of `loss` at the model's output.

    The generalised Gauss-Newton matrix of `loss(model(params))`: positive semi-definite where
    `loss` is convex, as cross-entropy is.

    Raises ValueError for a loss that isn't 0-d, or a vector that isn't like params.
    Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, 2002.
    """
    _check_alike(vector, params, "the vector")
    outputs, along, *_ = torch.func.jvp(model, (params,), (vector,))
    curved = torch.func.jvp(torch.func.grad(_scalar(loss)), (outputs,), (along,))[1]
    return torch.func.vjp(model, params)[1](curved)[0]


class Estimate(NamedTuple):
    """A mean of random samples."""

    value: Tensor  # 0-d
    error: Tensor  # 0-d: standard error of the mean


def trace(product: Product, like: Params, key: Tensor, *, samples: int = 16) -> Estimate:
    """The trace of a matrix, as the mean of vᵀ A v over random signs v.

    Args:
        product: multiplies by the matrix.
        like: a tree like the vectors, such as the parameters.
        key: draws the signs; sample i takes `fold_in(key, i)`.
        samples: at least 2, one product each.

    Raises ValueError for fewer samples, or a product that isn't like its vector.
    Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989.
    """
    if samples < 2:
        raise ValueError(f"got {samples} samples, expected at least 2, to tell the error")
    forms = []
    for index in range(samples):
        vector = rademacher_like(random.fold_in(key, index), like)
        forms.append(dot(vector, product(vector)))
    values = torch.stack(forms)
    return Estimate(values.mean(), values.std() / samples**0.5)


class Eigenpair(NamedTuple):
    """An eigenvalue of a matrix, and its eigenvector of length 1."""

    value: Tensor  # 0-d
    vector: Params


def largest_eigenvalue(
    product: Product, like: Params, key: Tensor, *, iterations: int = 20
) -> Eigenpair:
    """The algebraically largest eigenvalue of a symmetric matrix: of a loss's Hessian, sharpness.

    Lanczos iteration from a random vector, every new direction made orthogonal to all before it;
    the value comes from below, and is exact when `iterations` reaches the number of parameters.

    Args:
        product: multiplies by the matrix.
        like: a tree like the vectors, such as the parameters.
        key: draws the first vector.
        iterations: products to take, at least 1; as many vectors are held.

    Raises ValueError for fewer iterations, or a product that isn't like its vector.
    Lanczos, An iteration method for the solution of the eigenvalue problem, 1950.
    """
    if iterations < 1:
        raise ValueError(f"got {iterations} iterations, expected at least 1")
    _check_alike(like, like, "`like`")
    flatten, unflatten = _flattening(like)
    direction = flatten(rademacher_like(key, like))
    scale, rounding = torch.zeros_like(direction[0]), 100 * torch.finfo(direction.dtype).eps
    basis: list[Tensor] = []
    images: list[Tensor] = []
    exhausted: list[Tensor] = []
    for _ in range(min(iterations, direction.numel())):
        # What is left may be rounding alone: then all that the first vector can reach was seen.
        exhausted.append(direction.norm() <= rounding * scale)
        basis.append(torch.where(exhausted[-1], 0, direction / direction.norm()))
        image = product(unflatten(basis[-1]))
        _check_alike(image, like, "the product")
        images.append(flatten(image))
        scale = torch.maximum(scale, images[-1].norm())
        direction = _orthogonal(_orthogonal(images[-1], basis), basis)
    small = torch.stack(basis) @ torch.stack(images).T
    # The zeros in place of exhausted vectors must not pass for an eigenvalue.
    below = torch.stack(exhausted) * (1 + 2 * small.abs().sum())
    values, vectors = torch.linalg.eigh((small + small.T) / 2 - torch.diag(below))
    return Eigenpair(values[-1], unflatten(vectors[:, -1] @ torch.stack(basis)))


def dot(first: Params, second: Params) -> Tensor:
    """The sum of the products of corresponding elements of two trees, 0-d.

    Raises ValueError for trees that differ in names, shapes, dtypes or devices, or are empty.
    """
    _check_alike(second, first, "the second tree")
    products = tree.map(lambda a, b: (a * b).sum(), first, second)
    return reduce(torch.add, tree.leaves(products))


def _check_alike(values: Any, like: Any, what: str) -> None:
    if not tree.leaves(like):
        raise ValueError(
            "the tree of parameters is empty, expected one leaf or more, as net.init gives them"
        )
    if found := tree.difference(values, like):
        name, ours, theirs = found
        raise ValueError(
            f"`{name}` is {ours} in {what}, expected {theirs}: give a tree like the parameters, "
            "as curvature.rademacher_like(key, params) does"
        )


def _scalar(loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    def checked(values: Any) -> Tensor:
        value = loss(values)
        if value.ndim:
            raise ValueError(
                f"the loss has shape {tuple(value.shape)}, expected a number without dimensions: "
                "take its mean or its sum"
            )
        return value

    return checked


def rademacher_like(key: Tensor, like: Params) -> Params:
    """A tree of 1 and -1, each as likely, of the shapes and dtypes of `like`.

    Leaf i, in order, takes `fold_in(key, i)`.
    """
    leaves, structure = tree.flatten(like)
    signs = [
        2 * random.bernoulli(random.fold_in(key, index), 0.5, leaf.shape).to(leaf.dtype) - 1
        for index, leaf in enumerate(leaves)
    ]
    return tree.unflatten(signs, structure)


def _flattening(like: Params) -> tuple[Callable[[Params], Tensor], Callable[[Tensor], Params]]:
    """Functions from trees like `like` to vectors (P,), and back."""
    leaves, structure = tree.flatten(like)
    sizes, shapes = [leaf.numel() for leaf in leaves], [leaf.shape for leaf in leaves]

    def flatten(values: Params) -> Tensor:
        return torch.cat([leaf.flatten() for leaf in tree.leaves(values)])

    def unflatten(vector: Tensor) -> Params:
        parts = zip(vector.split(sizes), shapes, strict=True)
        return tree.unflatten([part.reshape(shape) for part, shape in parts], structure)

    return flatten, unflatten


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """`vector` without its part in the span of `basis`, whose vectors are orthonormal.

    Once leaves rounding errors where little is left; twice is enough (Parlett, 1980).
    """
    rows = torch.stack(basis)
    return vector - rows.T @ (rows @ vector)
