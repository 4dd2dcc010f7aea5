"""Lowerings: rewrites of operations that a target runs badly, applied while a graph is traced.

A lowering is a pure function in place of one ATen operation, with a rule, by shape, dtype and
device, for when it applies.  A rewrite may call the operation itself: that call is left to the
other lowerings.
"""

from funcnets.jit.lowerings import few, first, layout, pooling, wide, winograd
from funcnets.jit.lowerings.convolution import TINY_BACKWARD, TINY_FORWARD
from funcnets.jit.lowerings.grouped import SPLIT_BACKWARD, SPLIT_FORWARD
from funcnets.jit.lowerings.moments import MOMENTS, NARROW_SUM
from funcnets.jit.lowerings.recorder import Lowering, Recorder, Watch, unwatched

DEFAULT: tuple[Lowering, ...] = (
    winograd.FORWARD,  # before what widens, as it reads bfloat16 as it is
    winograd.BACKWARD,
    *wide.LOWERINGS,
    TINY_FORWARD,
    TINY_BACKWARD,
    SPLIT_FORWARD,
    SPLIT_BACKWARD,
    few.FORWARD,
    few.BACKWARD,
    first.FORWARD,
    first.BACKWARD,
    layout.FORWARD,
    layout.BACKWARD,
    layout.POOL_FORWARD,
    layout.POOL_BACKWARD,
    pooling.AVERAGE_FORWARD,
    pooling.AVERAGE_BACKWARD,
    MOMENTS,
    NARROW_SUM,
)

__all__ = ["DEFAULT", "Lowering", "Recorder", "Watch", "unwatched"]
