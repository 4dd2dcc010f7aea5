"""Activation functions, element by element on inputs of any shape, and softmax over channels."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from funcnets._validate import check, check_non_negative
from funcnets.core import Layer
from funcnets.layers._arguments import format_kind
from funcnets.layers._leaf import function_layer


def relu() -> Layer:
    """Return max(x, 0)."""
    return function_layer("relu()", torch.relu)


def sigmoid() -> Layer:
    """Return 1 / (1 + exp(-x))."""
    return function_layer("sigmoid()", torch.sigmoid)


def tanh() -> Layer:
    """Return the hyperbolic tangent of x."""
    return function_layer("tanh()", torch.tanh)


def gelu(*, tanh: bool = False) -> Layer:
    """Return x · Φ(x), Φ the normal distribution, or with `tanh` its approximation by tanh.

    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    """
    kind = format_kind("gelu", tanh=(tanh, False))
    return function_layer(kind, partial(F.gelu, approximate="tanh" if tanh else "none"))


def silu() -> Layer:
    """Return x · sigmoid(x), also called swish."""
    return function_layer("silu()", F.silu)


def leaky_relu(slope: float = 0.01) -> Layer:
    """Return x where it is positive, slope · x elsewhere.

    Raises ValueError unless the slope is a finite number, 0 or more.
    """
    kind = format_kind("leaky_relu", slope=(slope, 0.01))
    check_non_negative(**{f"{kind}: slope": slope})
    return function_layer(kind, partial(F.leaky_relu, negative_slope=slope))


def elu(alpha: float = 1.0) -> Layer:
    """Return x where it is positive, alpha · (exp(x) - 1) elsewhere.

    Raises ValueError unless alpha is a positive number.
    Clevert et al., Exponential Linear Units, 2015.
    """
    kind = format_kind("elu", alpha=(alpha, 1.0))
    check(f"{kind}: alpha", alpha, lambda value: 0 < value < float("inf"), "a positive number")
    return function_layer(kind, partial(F.elu, alpha=alpha))


def softmax() -> Layer:
    """Return exp(x) over its sum over channels, for (N, C) or (N, C, H, W).

    >>> import torch
    >>> from funcnets import layers
    >>> layers.softmax().apply({}, {}, torch.zeros(1, 4))[0]
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return function_layer("softmax()", _softmax, ranks=(2, 4))


def _softmax(x: Tensor) -> Tensor:
    # Not `torch.softmax`, which doesn't keep channels_last.
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    powers = (precise - precise.amax(1, keepdim=True).detach()).exp()
    return (powers / powers.sum(1, keepdim=True)).to(x.dtype)
