"""Transforms of networks and training steps, batch norm and dropout included.

- `accumulate`, `per_example`, `per_example_gradients`: gradients by micro-batches, by examples
- `ensemble`: several networks trained in one step
- `curvature`, `laplace`: Hessian products, sharpness, Laplace approximation
- `averaged`, `with_average`, `averages`: moving averages of parameters and statistics
- `capture`: activations by path
- `remat`: recompute activations in the backward pass
- `frozen_statistics`: batch norms that keep their running statistics
- `check_finite`: find the first layer with a value that isn't finite
"""

from funcnets.transforms import curvature, ensemble, laplace
from funcnets.transforms.accumulate import accumulate
from funcnets.transforms.averaging import averaged, averages, with_average
from funcnets.transforms.capture import Captured, capture
from funcnets.transforms.nan_check import NonFiniteError, check_finite
from funcnets.transforms.per_example import PerExample, per_example, per_example_gradients
from funcnets.transforms.remat import remat
from funcnets.transforms.statistics import frozen_statistics

__all__ = [
    "Captured",
    "NonFiniteError",
    "PerExample",
    "accumulate",
    "averaged",
    "averages",
    "capture",
    "check_finite",
    "curvature",
    "ensemble",
    "frozen_statistics",
    "laplace",
    "per_example",
    "per_example_gradients",
    "remat",
    "with_average",
]
