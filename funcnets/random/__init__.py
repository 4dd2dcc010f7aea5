"""Random numbers as pure functions of a key: those of `jax.random`, bit for bit where it says so.

The generator is Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011).  It needs only additions, xors and rotations of 32-bit integers, so a key gives the same
numbers on every device, eager, compiled, traced or under a transform.  Only in float64 may the last
digit differ, in normal numbers and in a range whose width is not a power of two.  Under `vmap`,
16-bit numbers need a torch newer than 2.11.
"""

from funcnets.random.distributions import categorical, choice, exponential, gumbel, randint
from funcnets.random.generator import (
    bernoulli,
    bits,
    fold_in,
    key,
    normal,
    permutation,
    split,
    threefry2x32,
    truncated_normal,
    uniform,
)

__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "choice",
    "exponential",
    "fold_in",
    "gumbel",
    "key",
    "normal",
    "permutation",
    "randint",
    "split",
    "threefry2x32",
    "truncated_normal",
    "uniform",
]
