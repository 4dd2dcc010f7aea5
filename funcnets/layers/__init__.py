"""Layers of which networks are made: convolution, batch norm, dropout, pooling and activations.

Each function takes hyper-parameters and returns a `Layer`.  Inputs and parameter trees are checked
when the layer runs, so that an error names the layer in which it happened.
"""

from funcnets.layers._leaf import function_layer, leaf
from funcnets.layers.activations import elu, gelu, leaky_relu, relu, sigmoid, silu, softmax, tanh
from funcnets.layers.attention import squeeze_excite
from funcnets.layers.convolution import conv2d, conv_transpose2d
from funcnets.layers.fully_connected import linear
from funcnets.layers.group_normalization import group_norm, instance_norm, layer_norm
from funcnets.layers.normalization import (
    BatchStatistics,
    batch_norm,
    channel_statistics,
    count_batch_norms,
)
from funcnets.layers.pooling import adaptive_avg_pool, avg_pool, global_avg_pool, max_pool
from funcnets.layers.regularization import (
    MultiplicativeNoise,
    dropout,
    noise_of_rows,
    stochastic_depth,
)
from funcnets.layers.reshaping import flatten, upsample

__all__ = [
    "BatchStatistics",
    "MultiplicativeNoise",
    "adaptive_avg_pool",
    "avg_pool",
    "batch_norm",
    "channel_statistics",
    "conv2d",
    "conv_transpose2d",
    "count_batch_norms",
    "dropout",
    "elu",
    "flatten",
    "function_layer",
    "gelu",
    "global_avg_pool",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "leaf",
    "leaky_relu",
    "linear",
    "max_pool",
    "noise_of_rows",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "squeeze_excite",
    "stochastic_depth",
    "tanh",
    "upsample",
]
