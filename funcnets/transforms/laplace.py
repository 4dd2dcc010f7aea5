"""Laplace approximation: a trained network's parameters with a Gaussian's width around them.

The posterior is N(mean, (G + precision)⁻¹), with G the generalised Gauss-Newton matrix of the
cross-entropy of all training examples, whole or its diagonal alone, and an isotropic prior.  The
parameters may be a part of a network's: with those of the last layer and the whole matrix, this is
the last-layer approximation.  The model is taken in evaluation, one example independent of another.
MacKay, A practical Bayesian framework for backpropagation networks, 1992; Daxberger et al.,
Laplace redux, 2021.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcnets import losses, random, tree
from funcnets.core import Params

Model = Callable[[Params, Tensor], Tensor]
"""`model(params, x)`: logits (N, K) for inputs x (N, …), each row from its own input alone."""

Structure = Literal["diagonal", "full"]


class Laplace(NamedTuple):
    """What is known of P parameters from the training examples, before any prior."""

    mean: Params  # the trained parameters
    curvature: Tensor  # (P,), the diagonal of G, or (P, P)
    log_likelihood: Tensor  # 0-d: of all training labels


def fit(
    model: Model,
    params: Params,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    structure: Structure = "diagonal",
) -> Laplace:
    """The approximation at `params`, which should be the trained ones, summed over `batches`.

    Args:
        model: its logits for the parameters that the approximation is about, others closed over.
        params: a tree of P parameters; of a `full` matrix, P² numbers are held.
        batches: inputs and labels (N,); N·K·P numbers are held at a time.
        structure: `diagonal` or `full`.

    Raises ValueError for another structure, no parameters, no batches, or what are none.
    """
    if structure not in ("diagonal", "full"):
        raise ValueError(f"no structure {structure!r}, expected diagonal or full")
    if not tree.leaves(params):
        raise ValueError("laplace.fit: params has no leaves, expected at least one parameter")
    parts = [observe(model, params, *_pair(batch), structure) for batch in batches]
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


def observe(
    model: Model, params: Params, x: Tensor, labels: Tensor, structure: Structure
) -> tuple[Tensor, Tensor]:
    """The curvature and the log likelihood of one batch; pure, for `jit`."""
    logits, jacobian = _linearize(model, params, x)
    weights = logits.softmax(1)
    # The Hessian of cross-entropy, diag(p) - p pᵀ, is F Fᵀ with F = diag(√p) - p √pᵀ.
    roots = weights.sqrt()
    factor = torch.diag_embed(roots) - weights[:, :, None] * roots[:, None, :]
    rows = torch.einsum("nkj,nkp->njp", factor, jacobian).flatten(0, 1)
    curvature = rows.T @ rows if structure == "full" else rows.square().sum(0)
    return curvature, -losses.cross_entropy(logits, labels, reduction="sum")


def log_evidence(laplace: Laplace, precision: float | Tensor) -> Tensor:
    """The log marginal likelihood of the training labels under a prior N(0, 1/precision), 0-d.

    MacKay 1992, equation 10, of the linearised network; the prior's precision may be chosen by it.
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
    """Mean (N, K) and covariance (N, K, K) of the logits, of the network linear in its parameters.

    Raises ValueError for a precision of the prior that isn't positive.
    Immer et al., Improving predictions of Bayesian neural nets via local linearization, 2021.
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
    """Class probabilities (N, K): the softmax of mean / √(1 + π/8 · variance).

    An approximation to the mean of the softmax: MacKay, The evidence framework applied to
    classification networks, 1992, equation 10, for each class.
    """
    variance = covariance.diagonal(dim1=1, dim2=2)
    return (mean / (1 + math.pi / 8 * variance).sqrt()).softmax(1)


def monte_carlo(mean: Tensor, covariance: Tensor, key: Tensor, *, samples: int = 100) -> Tensor:
    """Class probabilities (N, K): the mean softmax of `samples` draws from N(mean, covariance).

    Raises ValueError for less than one sample.
    """
    if samples < 1:
        raise ValueError(f"got {samples} samples, expected at least 1")
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    noise = random.normal(key, (samples, *mean.shape), mean.dtype)
    return (mean + torch.einsum("nkj,snj->snk", root, noise)).softmax(2).mean(0)


def _linearize(model: Model, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and their Jacobian (N, K, P)."""

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
