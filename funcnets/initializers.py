"""Initial values: each factory returns a pure function (key, shape, dtype) -> Tensor.

Weights are laid out as in torch, (out, in, *kernel).  The values lie on the key's device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from funcnets import random

__all__ = [
    "Initializer",
    "constant",
    "fans",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Initializer = Callable[[Tensor, Sequence[int], torch.dtype], Tensor]
Fan = Literal["fan_in", "fan_out"]
Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["uniform", "normal", "truncated_normal"]

# The standard deviation of a standard normal that is cut to [-2, 2].
_TRUNCATED_STD = 0.87962566103423978


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight of shape (out, in, *kernel): in, and out, times the kernel.

    Raises ValueError for fewer than two dimensions, and for a shape without elements.
    """
    if len(shape) < 2:
        raise ValueError(
            "fan_in and fan_out need a weight of shape (out, in, *kernel), got shape "
            f"{tuple(shape)}: for a bias take zeros() or uniform(bound)"
        )
    if 0 in shape:
        raise ValueError(f"a weight of shape {tuple(shape)} has no elements to initialise")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def variance_scaling(scale: float, mode: Mode, distribution: Distribution) -> Initializer:
    """Values with mean 0 and variance scale / n, n being the fan (or mean of the two) of `mode`.

    The truncated normal is cut at two standard deviations of the normal that it is cut from,
    and has the variance after that, as in `jax.nn.initializers.variance_scaling`.  Raises
    ValueError for a mode or distribution that is none of these.
    """
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(f"mode is fan_in, fan_out or fan_avg, got {mode!r}")
    if distribution not in ("uniform", "normal", "truncated_normal"):
        raise ValueError(
            f"distribution is uniform, normal or truncated_normal, got {distribution!r}"
        )

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        std = math.sqrt(scale / fan)
        if distribution == "uniform":
            return uniform(math.sqrt(3.0) * std)(key, shape, dtype)
        if distribution == "normal":
            return normal(std)(key, shape, dtype)
        return truncated_normal(std / _TRUNCATED_STD)(key, shape, dtype)

    return initialize


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """Uniform within gain * sqrt(6 / (fan_in + fan_out)) of 0 (Glorot and Bengio 2010)."""
    return variance_scaling(gain**2, "fan_avg", "uniform")


def xavier_normal(gain: float = 1.0) -> Initializer:
    """Normal, std gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return variance_scaling(gain**2, "fan_avg", "normal")


def kaiming_uniform(mode: Fan = "fan_in", gain: float = math.sqrt(2.0)) -> Initializer:
    """Uniform within gain * sqrt(3 / fan) of 0 (He et al. 2015); the default gain suits relu."""
    return variance_scaling(gain**2, mode, "uniform")


def kaiming_normal(mode: Fan = "fan_in", gain: float = math.sqrt(2.0)) -> Initializer:
    """Normal, std gain / sqrt(fan) (He et al. 2015); the default gain suits relu."""
    return variance_scaling(gain**2, mode, "normal")


def lecun_uniform() -> Initializer:
    """Uniform within sqrt(3 / fan_in) of 0 (LeCun et al. 1998)."""
    return variance_scaling(1.0, "fan_in", "uniform")


def lecun_normal() -> Initializer:
    """Truncated normal, std 1 / sqrt(fan_in) (LeCun et al. 1998), as `jax.nn.initializers`."""
    return variance_scaling(1.0, "fan_in", "truncated_normal")


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound)."""
    if bound < 0.0:
        raise ValueError(f"uniform takes a bound of at least 0, got {bound}")

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return random.uniform(key, shape, dtype, -bound, bound)

    return initialize


def normal(std: float = 1.0) -> Initializer:
    """Normal with mean 0 and the given standard deviation."""

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return random.normal(key, shape, dtype) * std

    return initialize


def truncated_normal(std: float = 1.0) -> Initializer:
    """Normal with mean 0 and standard deviation `std` before it is cut to [-2 std, 2 std]."""

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return random.truncated_normal(key, -2.0, 2.0, shape, dtype) * std

    return initialize


def orthogonal(gain: float = 1.0) -> Initializer:
    """`gain` times a matrix with orthonormal rows or columns, whichever are fewer.

    The matrix is the weight with all axes but the first made one, drawn uniformly (Saxe et
    al. 2014; Mezzadri 2007), in float32 at least.  Raises ValueError as `fans`.
    """

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        fans(shape)
        rows, columns = shape[0], math.prod(shape[1:])
        work_dtype = torch.promote_types(dtype, torch.float32)
        tall = (max(rows, columns), min(rows, columns))
        basis, triangle = torch.linalg.qr(random.normal(key, tall, work_dtype))
        # The signs make the decomposition unique, and so its basis uniform.
        basis = basis * triangle.diagonal().sign()
        matrix = basis if rows >= columns else basis.T
        return (gain * matrix).to(dtype).reshape(shape)

    return initialize


def constant(value: float) -> Initializer:
    """`value` everywhere; the key gives the device alone."""

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), value, dtype=dtype, device=key.device)

    return initialize


def zeros() -> Initializer:
    """0 everywhere."""
    return constant(0.0)


def ones() -> Initializer:
    """1 everywhere."""
    return constant(1.0)
