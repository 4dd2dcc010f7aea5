"""Curvature of a loss with respect to its parameters: Hessian products, trace, sharpness.

A loss is a function of the parameters alone: let it close over the batch, the running statistics
and the key, so that the same key gives the same dropout masks in every product.  A curvature
matrix is never built.  It is represented by the function that multiplies a vector by it, such as
`functools.partial(hessian_product, loss, params)`, and the estimators take any such function.

>>> from functools import partial
>>> import torch
>>> from funcnets import random
>>> from funcnets.transforms import curvature
>>> def loss(params):  # with the Hessian diag(2, 6)
...     return params["x"] ** 2 + 3 * params["y"] ** 2
>>> params = {"x": torch.tensor(1.0), "y": torch.tensor(1.0)}
>>> product = partial(curvature.hessian_product, loss, params)
>>> round(float(curvature.largest_eigenvalue(product, params, random.key(0)).value), 3)
6.0
>>> float(curvature.hutchinson_trace(product, params, random.key(0)).value)
8.0
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from funcnets import random, tree
from funcnets.core import Params

Product = Callable[[Params], Params]
"""Multiplication by a symmetric matrix, from trees like the parameters to trees like them."""

Mode = Literal["forward_over_reverse", "reverse_over_reverse"]


def hessian_product(
    loss: Callable[[Params], Tensor],
    params: Params,
    vector: Params,
    *,
    mode: Mode = "forward_over_reverse",
) -> Params:
    """Return H v, with the Hessian H of `loss` at `params`: a tree like `params`.

    Args:
        loss: a function of the parameters with a 0-d result.
        params: a tree of parameters.
        vector: v, a tree like `params`.
        mode: `forward_over_reverse`, the directional derivative of the gradient along v, takes
            less memory; `reverse_over_reverse`, the gradient of gradient · v, is for functions
            without forward-mode derivatives.  Both give the same numbers, up to rounding.

    Raises ValueError for another mode, a loss that isn't 0-d, or a vector that isn't like `params`.
    Pearlmutter, "Fast exact multiplication by the Hessian", 1994.

    >>> import torch
    >>> from funcnets.transforms import curvature
    >>> params, vector = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([1.0, 0.0])}
    >>> curvature.hessian_product(lambda params: params["x"].prod(), params, vector)
    {'x': tensor([0., 1.])}
    """
    vector = _ordered_as(params, vector)
    gradient = torch.func.grad(_scalar(loss))
    if mode == "forward_over_reverse":
        return cast(Params, torch.func.jvp(gradient, (params,), (vector,))[1])
    if mode == "reverse_over_reverse":
        along = torch.func.grad(lambda params: dot(gradient(params), vector))
        return cast(Params, along(params))
    raise ValueError(f"no mode {mode!r}, expected forward_over_reverse or reverse_over_reverse")


def gauss_newton_product(
    model: Callable[[Params], Tensor],
    loss: Callable[[Tensor], Tensor],
    params: Params,
    vector: Params,
) -> Params:
    """Return Jᵀ H J v, with J of `model` at `params`, and H of `loss` at the model's output.

    Jᵀ H J is the generalised Gauss-Newton matrix of `loss(model(params))`; it is positive
    semi-definite if `loss` is convex, as cross-entropy is.

    Args:
        model: a function from the parameters to an output, such as logits (N, K).
        loss: a function from the output to a 0-d tensor.
        params: a tree of parameters.
        vector: v, a tree like `params`.

    Raises ValueError for a loss that isn't 0-d, or a vector that isn't like `params`.
    Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.

    >>> import torch
    >>> from funcnets.transforms import curvature
    >>> params, vector = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([1.0, 0.0])}
    >>> curvature.gauss_newton_product(
    ...     lambda params: params["x"].prod(), lambda y: y**2, params, vector
    ... )
    {'x': tensor([8., 4.])}
    """
    vector = _ordered_as(params, vector)
    outputs, along, *_ = torch.func.jvp(model, (params,), (vector,))
    curved = torch.func.jvp(torch.func.grad(_scalar(loss)), (outputs,), (along,))[1]
    return cast(Params, torch.func.vjp(model, params)[1](curved)[0])


class Estimate(NamedTuple):
    """The mean of random samples."""

    value: Tensor  # 0-d
    error: Tensor  # 0-d: standard error of the mean


def hutchinson_trace(product: Product, like: Params, key: Tensor, *, samples: int = 16) -> Estimate:
    """Estimate the trace of a matrix A: the mean of vᵀ A v over vectors v of random signs.

    Args:
        product: multiplies a vector by the matrix.
        like: a tree like the vectors, such as the parameters.
        key: (2,), draws the signs; sample i uses `fold_in(key, i)`.
        samples: number of samples, at least 2; each takes one product.

    Raises ValueError for fewer samples, or a product that isn't like its vector.
    Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989.

    >>> from funcnets import random
    >>> from funcnets.transforms import curvature
    >>> like = {"x": torch.zeros(10)}
    >>> def double(vector):
    ...     return {"x": 2 * vector["x"]}
    >>> curvature.hutchinson_trace(double, like, random.key(0))
    Estimate(value=tensor(20.), error=tensor(0.))
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
    """An eigenvalue of a matrix, and an eigenvector."""

    value: Tensor  # 0-d
    vector: Params  # of Euclidean norm 1


def largest_eigenvalue(
    product: Product, like: Params, key: Tensor, *, iterations: int = 20
) -> Eigenpair:
    """Estimate the algebraically largest eigenvalue of a symmetric matrix.

    For the Hessian of a loss this is its sharpness.  Lanczos iteration from a random vector, with
    full reorthogonalisation; the estimate never exceeds the eigenvalue, up to rounding, and is
    exact once `iterations` reaches the number of parameters.

    Args:
        product: multiplies a vector by the matrix.
        like: a tree like the vectors, such as the parameters.
        key: (2,), draws the first vector.
        iterations: number of products, at least 1; twice as many vectors are kept in memory.

    Raises ValueError for fewer iterations, or a product that isn't like its vector.
    Lanczos, "An iteration method for the solution of the eigenvalue problem of linear differential
    and integral operators", 1950.

    >>> from funcnets import random
    >>> from funcnets.transforms import curvature
    >>> scales, like = torch.tensor([1.0, 5.0, 3.0]), {"x": torch.zeros(3)}
    >>> pair = curvature.largest_eigenvalue(
    ...     lambda vector: {"x": scales * vector["x"]}, like, random.key(0)
    ... )
    >>> round(float(pair.value), 4), pair.vector["x"].abs().argmax()
    (5.0, tensor(1))
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
        # A remainder of rounding errors alone: the Krylov space of the first vector is exhausted.
        exhausted.append(direction.norm() <= rounding * scale)
        basis.append(torch.where(exhausted[-1], 0, direction / direction.norm()))
        image = product(unflatten(basis[-1]))
        _check_alike(image, like, "the product")
        images.append(flatten(image))
        scale = torch.maximum(scale, images[-1].norm())
        direction = _orthogonal(_orthogonal(images[-1], basis), basis)
    small = torch.stack(basis) @ torch.stack(images).T
    # Zeros in place of exhausted vectors must not count as an eigenvalue: move them below all.
    below = torch.stack(exhausted) * (1 + 2 * small.abs().sum())
    values, vectors = torch.linalg.eigh((small + small.T) / 2 - torch.diag(below))
    return Eigenpair(values[-1], unflatten(vectors[:, -1] @ torch.stack(basis)))


def dot(first: Params, second: Params) -> Tensor:
    """Return the inner product of two trees, each taken as one vector: 0-d.

    Raises ValueError for trees that differ in names, shapes, dtypes or devices, or are empty.

    >>> from funcnets.transforms import curvature
    >>> first, second = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0, 4.0])}
    >>> curvature.dot(first, second)
    tensor(11.)
    """
    _check_alike(second, first, "the second tree")
    products = tree.map(lambda a, b: (a * b).sum(), first, second)
    total: Tensor = reduce(torch.add, tree.leaves(products))
    return total


def _ordered_as(params: Params, vector: Params) -> Params:
    """Return `vector` with its names in the order of `params`, as torch.func compares them."""
    _check_alike(vector, params, "the vector")
    named = tree.flatten_named(vector)
    return cast(Params, tree.map_named(lambda name, leaf: named[name], params))


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
    """Return a tree of random signs, 1 or -1, of the shapes and dtypes of `like`.

    Leaf i, in order, is drawn from `fold_in(key, i)`.
    """
    leaves, structure = tree.flatten(like)
    signs = [
        2 * random.bernoulli(random.fold_in(key, index), 0.5, leaf.shape).to(leaf.dtype) - 1
        for index, leaf in enumerate(leaves)
    ]
    return cast(Params, tree.unflatten(signs, structure))


def _flattening(like: Params) -> tuple[Callable[[Params], Tensor], Callable[[Tensor], Params]]:
    """Return functions from trees like `like` to vectors (P,), and back.

    A vector is in the widest dtype of the leaves, float32 at least, in which eigenvalues can be
    computed; back from it each leaf has its own dtype.
    """
    leaves, structure = tree.flatten(like)
    sizes = [leaf.numel() for leaf in leaves]
    dtype = reduce(torch.promote_types, [leaf.dtype for leaf in leaves], torch.float32)

    def flatten(values: Params) -> Tensor:
        return torch.cat([leaf.flatten().to(dtype) for leaf in tree.leaves(values)])

    def unflatten(vector: Tensor) -> Params:
        parts = zip(torch.split(vector, sizes), leaves, strict=True)
        reshaped = [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in parts]
        return cast(Params, tree.unflatten(reshaped, structure))

    return flatten, unflatten


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """Return `vector` without its projection onto the span of `basis`, which is orthonormal.

    Applied once, it leaves rounding errors if the remainder is small; twice is enough: Parlett,
    "The symmetric eigenvalue problem", 1980, section 6.9.
    """
    rows = torch.stack(basis)
    return vector - rows.T @ (rows @ vector)
