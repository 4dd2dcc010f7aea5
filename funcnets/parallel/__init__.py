"""Data parallel: several processes, each with its share of the batch, train one network.

A training step stays a pure function.  What is summed over processes goes through an `Axis`, which
is an explicit argument and of one process by default.
"""

from funcnets.parallel.axis import Axis
from funcnets.parallel.gradients import gradient, synchronize
from funcnets.parallel.replicas import DivergenceError, check_replicas, hash_leaves

__all__ = [
    "Axis",
    "DivergenceError",
    "check_replicas",
    "gradient",
    "hash_leaves",
    "synchronize",
]
