"""Activation functions, element by element on inputs of any shape."""

import torch

from funcnets.core import Layer
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
