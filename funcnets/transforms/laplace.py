"""Laplace approximation: a Gaussian posterior over the parameters of a trained network.

The posterior is N(mean, (G + precision · I)⁻¹).  G is the generalised Gauss-Newton matrix of the
cross-entropy summed over all training examples, as a full matrix or its diagonal alone; the prior
is isotropic.  The parameters may be a part of the network's: for the parameters of the last layer
and the full matrix, this is the last-layer approximation.  The model must be in evaluation mode,
so that examples are independent of each other.

MacKay, "A practical Bayesian framework for backpropagation networks", 1992; Daxberger et al.,
"Laplace redux: effortless Bayesian deep learning", 2021.

>>> import torch
>>> from funcnets.transforms import laplace
>>> def model(params, x):
...     return x @ params["weight"]
>>> params, x, labels = {"weight": torch.eye(2)}, 3 * torch.eye(2), torch.tensor([0, 1])
>>> posterior = laplace.fit(model, params, [(x, labels)], structure="full")
>>> mean, covariance = laplace.logit_distribution(posterior, model, x, precision=1.0)
>>> mean.shape, covariance.shape
(torch.Size([2, 2]), torch.Size([2, 2, 2]))
>>> bool((laplace.probit(mean, covariance).amax(1) < mean.softmax(1).amax(1)).all())  # less sure
True
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcnets import losses, random, tree
from funcnets.core import Params

Model = Callable[[Params, Tensor], Tensor]
"""`model(params, x)`: logits (N, K) of inputs x (N, …), each row from its own input alone."""

Structure = Literal["diagonal", "full"]


class Laplace(NamedTuple):
    """The approximation for P parameters, which holds for any precision of the prior."""

    mean: Params  # the trained parameters
    curvature: Tensor  # G, (P, P), or its diagonal, (P,)
    log_likelihood: Tensor  # 0-d: of all training labels, in nats


def fit(
    model: Model,
    params: Params,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    structure: Structure = "diagonal",
) -> Laplace:
    """Fit the approximation at `params`, the trained parameters, to the examples of `batches`.

    Args:
        model: the logits as a function of the parameters of the posterior; it closes over all
            others.
        params: a tree of P parameters.
        batches: pairs of inputs (N, …) and labels (N,); N·K·P numbers are in memory at a time.
        structure: `diagonal`, or `full` for a matrix of P² numbers.

    Raises ValueError for another structure, no parameters, no batches, or batches that aren't
    pairs.

    >>> import torch
    >>> from funcnets.transforms import laplace
    >>> x, labels = torch.ones(8, 3), torch.zeros(8, dtype=torch.int64)
    >>> posterior = laplace.fit(
    ...     lambda params, x: x @ params["weight"], {"weight": torch.zeros(3, 2)}, [(x, labels)]
    ... )
    >>> posterior.curvature.round(decimals=3).tolist()  # 8 examples · p (1 - p) · 1²
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    if structure not in ("diagonal", "full"):
        raise ValueError(f"no structure {structure!r}, expected diagonal or full")
    if not tree.leaves(params):
        raise ValueError("laplace.fit: params has no leaves, expected at least one parameter")
    parts = [
        curvature_and_log_likelihood(model, params, *_pair(batch), structure) for batch in batches
    ]
    if not parts:
        raise ValueError("laplace.fit: got no batches, expected the training examples")
    curvature, log_likelihood = (sum(column[1:], column[0]) for column in zip(*parts, strict=True))
    return Laplace(params, curvature, log_likelihood)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"laplace.fit: got a {type(batch).__name__} for a batch, expected (inputs, labels): "
            "give a list of batches, as in [(x, labels)]"
        )
    return batch[0], batch[1]


def curvature_and_log_likelihood(
    model: Model, params: Params, x: Tensor, labels: Tensor, structure: Structure
) -> tuple[Tensor, Tensor]:
    """Return G, or its diagonal, and the log-likelihood of one batch; a pure function."""
    logits, jacobian = _linearize(model, params, x)
    weights = logits.softmax(1)
    # The Hessian of cross-entropy, diag(p) - p pᵀ, is F Fᵀ with F = diag(√p) - p √pᵀ.
    roots = weights.sqrt()
    factor = torch.diag_embed(roots) - weights[:, :, None] * roots[:, None, :]
    rows = torch.einsum("nkj,nkp->njp", factor, jacobian).flatten(0, 1)
    curvature = rows.T @ rows if structure == "full" else rows.square().sum(0)
    return curvature, -losses.cross_entropy(logits, labels, reduction="sum")


def log_evidence(laplace: Laplace, precision: float | Tensor) -> Tensor:
    """Return the log marginal likelihood of the training labels under a prior N(0, I / precision).

    It is 0-d, and may be maximised to choose the precision.  MacKay, 1992, equation 10, of the
    linearised network.

    Raises ValueError for a precision that isn't positive.
    """
    eigenvalues = laplace.curvature
    if eigenvalues.ndim == 2:
        eigenvalues = torch.linalg.eigvalsh(eigenvalues).clamp(min=0)
    _check_precision(precision)
    precision = torch.as_tensor(precision, dtype=eigenvalues.dtype)
    squares = torch.stack([leaf.square().sum() for leaf in tree.leaves(laplace.mean)]).sum()
    occam = ((eigenvalues + precision).log() - precision.log()).sum()
    return laplace.log_likelihood - (precision * squares + occam) / 2


def logit_distribution(
    laplace: Laplace, model: Model, x: Tensor, precision: float
) -> tuple[Tensor, Tensor]:
    """Return mean (N, K) and covariance (N, K, K) of the logits of the linearised network.

    Args:
        laplace: as `fit` returns it.
        model: the model that it was fitted to.
        x: inputs (N, …).
        precision: of the prior, a positive number.

    Raises ValueError for a precision that isn't positive.
    Immer et al., "Improving predictions of Bayesian neural nets via local linearization", 2021.
    """
    _check_precision(precision)
    logits, jacobian = _linearize(model, laplace.mean, x)
    if laplace.curvature.ndim == 1:
        scaled = jacobian / (laplace.curvature + precision)
    else:
        identity = torch.eye(len(laplace.curvature), dtype=jacobian.dtype, device=jacobian.device)
        root = torch.linalg.cholesky(laplace.curvature + precision * identity)
        columns = jacobian.flatten(0, 1).T
        scaled = torch.cholesky_solve(columns, root).T.reshape(jacobian.shape)
    return logits, torch.einsum("nkp,njp->nkj", jacobian, scaled)


def probit(mean: Tensor, covariance: Tensor) -> Tensor:
    """Return class probabilities (N, K): the softmax of mean / √(1 + π/8 · variance).

    An approximation to the mean of the softmax: MacKay, "The evidence framework applied to
    classification networks", 1992, equation 10, for each class.
    """
    variance = covariance.diagonal(dim1=1, dim2=2)
    return (mean / (1 + math.pi / 8 * variance).sqrt()).softmax(1)


def monte_carlo(mean: Tensor, covariance: Tensor, key: Tensor, *, samples: int = 100) -> Tensor:
    """Return class probabilities (N, K): the mean softmax of draws from N(mean, covariance).

    `key` (2,) draws `samples` logits for each input.  Raises ValueError for less than one sample.
    """
    if samples < 1:
        raise ValueError(f"got {samples} samples, expected at least 1")
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    noise = random.normal(key, (samples, *mean.shape), mean.dtype)
    return (mean + torch.einsum("nkj,snj->snk", root, noise)).softmax(2).mean(0)


def _linearize(model: Model, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and their Jacobian (N, K, P)."""

    def one(x: Tensor) -> tuple[Tensor, Tensor]:
        def logits(params: Params) -> tuple[Tensor, Tensor]:
            y = model(params, x[None])[0]
            return y, y

        jacobian, y = torch.func.jacrev(logits, has_aux=True)(params)
        return y, torch.cat([leaf.flatten(1) for leaf in tree.leaves(jacobian)], dim=1)

    return torch.func.vmap(one)(x)


def _check_precision(precision: float | Tensor) -> None:
    if not isinstance(precision, Tensor) and not 0 < precision < math.inf:
        raise ValueError(f"the prior's precision is {precision}, expected a positive number")
