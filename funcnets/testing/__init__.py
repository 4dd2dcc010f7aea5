"""Proofs that a functional network equals a module, and that a layer keeps its promises.

`twins` has the eight networks as modules.  `strategies` draws networks, images, keys and trees for
hypothesis; it alone imports hypothesis, which the extra `test` installs.
"""

from funcnets.testing import twins
from funcnets.testing._architectures import Architecture
from funcnets.testing._difference import Difference, assert_close
from funcnets.testing._equivalence import assert_equivalent
from funcnets.testing._layer_checks import ERRORS, check_layer
from funcnets.testing._networks import Network
from funcnets.testing._training import assert_trains_alike
from funcnets.testing._transforms import assert_transforms_agree
from funcnets.testing._values import random_like, random_values

__all__ = [
    "ERRORS",
    "Architecture",
    "Difference",
    "Network",
    "assert_close",
    "assert_equivalent",
    "assert_trains_alike",
    "assert_transforms_agree",
    "check_layer",
    "random_like",
    "random_values",
    "twins",
]
