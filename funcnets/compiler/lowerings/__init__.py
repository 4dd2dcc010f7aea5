"""Lowerings: rewrites of operations that a target runs badly, applied while a graph is traced.

A lowering is a pure function in place of one ATen operation, with a rule, by shape, dtype and
device, for when it applies.  A rewrite may call the operation itself: that call is left to the
other lowerings.
"""

from funcnets.compiler.lowerings import (
    avg_pool,
    bfloat16,
    few_channels,
    layout,
    one_channel,
    winograd,
)
from funcnets.compiler.lowerings.dense import TINY_BACKWARD, TINY_FORWARD
from funcnets.compiler.lowerings.grouped import SPLIT_BACKWARD, SPLIT_FORWARD
from funcnets.compiler.lowerings.moments import MOMENTS, NARROW_SUM
from funcnets.compiler.lowerings.table import Lowering, Recorder, Watch, unwatched

DEFAULT: tuple[Lowering, ...] = (
    winograd.FORWARD,  # before what widens, as it reads bfloat16 as it is
    winograd.BACKWARD,
    *bfloat16.LOWERINGS,
    TINY_FORWARD,
    TINY_BACKWARD,
    SPLIT_FORWARD,
    SPLIT_BACKWARD,
    few_channels.FORWARD,
    few_channels.BACKWARD,
    one_channel.FORWARD,
    one_channel.BACKWARD,
    layout.FORWARD,
    layout.BACKWARD,
    layout.POOL_FORWARD,
    layout.POOL_BACKWARD,
    avg_pool.AVERAGE_FORWARD,
    avg_pool.AVERAGE_BACKWARD,
    MOMENTS,
    NARROW_SUM,
)

__all__ = ["DEFAULT", "Lowering", "Recorder", "Watch", "unwatched"]
