"""The classic convolutional networks as pure functions over parameter trees, in PyTorch."""

from funcnets import (
    core,
    data,
    initializers,
    layers,
    losses,
    metrics,
    models,
    optim,
    precision,
    random,
    train,
    transforms,
    tree,
)
from funcnets.core import Layer, LayerError, concat, dense, residual, sequential
from funcnets.jit import jit

__version__ = "0.1.0"
__all__ = [
    "Layer",
    "LayerError",
    "concat",
    "core",
    "data",
    "dense",
    "initializers",
    "jit",
    "layers",
    "losses",
    "metrics",
    "models",
    "optim",
    "precision",
    "random",
    "residual",
    "sequential",
    "train",
    "transforms",
    "tree",
]
