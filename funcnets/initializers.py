"""Initial values of parameters, as pure functions of a key.

Each function here returns an initializer, `initializer(key, shape, dtype) -> Tensor`, whose values
are on the key's device.  The shape of a weight is PyTorch's, (out, in, *kernel).
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

# Standard deviation of a standard normal distribution truncated to [-2, 2].
_TRUNCATED_STD = 0.87962566103423978


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight of shape (out, in, *kernel).

    They are `in` and `out`, each times the number of elements of the kernel.

    Raises ValueError for fewer than two dimensions and for a shape without elements.

    >>> from funcnets import initializers
    >>> initializers.fans((64, 3, 7, 7))
    (147, 3136)
    """
    if len(shape) < 2:
        raise ValueError(
            "fan_in and fan_out need a weight of shape (out, in, *kernel), got shape "
            f"{tuple(shape)}: for a bias use zeros() or uniform(bound)"
        )
    if 0 in shape:
        raise ValueError(f"a weight of shape {tuple(shape)} has no elements to initialise")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def variance_scaling(scale: float, mode: Mode, distribution: Distribution) -> Initializer:
    """Return an initializer of values with mean 0 and variance scale / n.

    Args:
        scale: variance times n.
        mode: n is fan_in, fan_out, or with `fan_avg` their mean; see `fans`.
        distribution: `uniform`, `normal` or `truncated_normal`.  The last is truncated at two
            standard deviations of the normal distribution; its variance after that is scale / n.

    Same as `jax.nn.initializers.variance_scaling`.  Raises ValueError for another mode or
    distribution.

    >>> import torch
    >>> from funcnets import initializers, random
    >>> initializer = initializers.variance_scaling(2.0, "fan_in", "normal")
    >>> initializer(random.key(0), (100, 50), torch.float32).var() * 50
    tensor(2.0743)
    """
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(f"mode is {mode!r}; expected fan_in, fan_out or fan_avg")
    if distribution not in ("uniform", "normal", "truncated_normal"):
        raise ValueError(
            f"distribution is {distribution!r}; expected uniform, normal or truncated_normal"
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
    """Return uniform values in ±gain · √(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return variance_scaling(gain**2, "fan_avg", "uniform")


def xavier_normal(gain: float = 1.0) -> Initializer:
    """Return normal values of std gain · √(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return variance_scaling(gain**2, "fan_avg", "normal")


def kaiming_uniform(mode: Fan = "fan_in", gain: float = math.sqrt(2.0)) -> Initializer:
    """Return uniform values in ±gain · √(3 / fan) (He et al., 2015); the default suits ReLU.

    `mode` is the fan that is meant: `fan_in` or `fan_out`.
    """
    return variance_scaling(gain**2, mode, "uniform")


def kaiming_normal(mode: Fan = "fan_in", gain: float = math.sqrt(2.0)) -> Initializer:
    """Return normal values of std gain / √fan (He et al., 2015); the default suits ReLU.

    `mode` is the fan that is meant: `fan_in` or `fan_out`.
    """
    return variance_scaling(gain**2, mode, "normal")


def lecun_uniform() -> Initializer:
    """Return uniform values in ±√(3 / fan_in) (LeCun et al., 1998)."""
    return variance_scaling(1.0, "fan_in", "uniform")


def lecun_normal() -> Initializer:
    """Return truncated normal values of std 1 / √fan_in (LeCun et al., 1998), as in JAX."""
    return variance_scaling(1.0, "fan_in", "truncated_normal")


def uniform(bound: float) -> Initializer:
    """Return uniform values in [-bound, bound); raises ValueError for a negative bound."""
    if bound < 0.0:
        raise ValueError(f"bound is {bound}; expected 0 or more")

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return random.uniform(key, shape, dtype, -bound, bound)

    return initialize


def normal(std: float = 1.0) -> Initializer:
    """Return normal values with mean 0 and standard deviation `std`."""

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return random.normal(key, shape, dtype) * std

    return initialize


def truncated_normal(std: float = 1.0) -> Initializer:
    """Return normal values with mean 0 and std `std`, truncated to [-2 std, 2 std]."""

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return random.truncated_normal(key, -2.0, 2.0, shape, dtype) * std

    return initialize


def orthogonal(gain: float = 1.0) -> Initializer:
    """Return `gain` times a random matrix with orthonormal rows or columns, whichever are fewer.

    The matrix (out, in · kernel) is the weight with all dimensions but the first flattened, drawn
    uniformly in float32 or wider (Saxe et al., 2014; Mezzadri, 2007).  Raises ValueError as `fans`.
    """

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        fans(shape)
        rows, columns = shape[0], math.prod(shape[1:])
        work_dtype = torch.promote_types(dtype, torch.float32)
        tall = (max(rows, columns), min(rows, columns))
        basis, triangle = torch.linalg.qr(random.normal(key, tall, work_dtype))
        # With a positive diagonal the decomposition is unique, which makes the basis uniform.
        basis = basis * triangle.diagonal().sign()
        matrix: Tensor = basis if rows >= columns else basis.T
        return (gain * matrix).to(dtype).reshape(shape)

    return initialize


def constant(value: float) -> Initializer:
    """Return `value` everywhere; of the key only the device is used."""

    def initialize(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), value, dtype=dtype, device=key.device)

    return initialize


def zeros() -> Initializer:
    """Return 0 everywhere."""
    return constant(0.0)


def ones() -> Initializer:
    """Return 1 everywhere."""
    return constant(1.0)
