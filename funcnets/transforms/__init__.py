"""What can be done with a network as a pure function, batch norm and dropout included."""

from funcnets.transforms import curvature, ensemble, laplace
from funcnets.transforms.accumulate import accumulate
from funcnets.transforms.averaging import averaged, averages, with_average
from funcnets.transforms.capture import Captured, capture
from funcnets.transforms.nan_check import NonFiniteError, checked
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
    "checked",
    "curvature",
    "ensemble",
    "frozen_statistics",
    "laplace",
    "per_example",
    "per_example_gradients",
    "remat",
    "with_average",
]
