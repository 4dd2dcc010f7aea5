"""Lowerings: rules that replace operations which a target runs slowly, while a graph is traced.

A lowering is a pure function in place of one ATen operation, with a condition on shapes, dtypes and
the device. Its name is that of its file, and the operation. A rewrite may call the operation that
it replaces: such a call is left to the other lowerings.
"""

from funcnets.compiler.lowerings import (
    avg_pool,
    bfloat16,
    dense,
    deterministic,
    few_channels,
    grouped,
    layout,
    moments,
    one_channel,
    winograd,
)
from funcnets.compiler.lowerings.table import Lowering, Recorder, Watch, unwatched

# Of the lowerings of one operation, the first that applies is used.
DEFAULT: tuple[Lowering, ...] = (
    winograd.FORWARD,  # reads bfloat16 from memory, so it comes before the conversion to float32
    winograd.BACKWARD,
    *bfloat16.LOWERINGS,
    dense.FORWARD,
    dense.BACKWARD,
    grouped.FORWARD,
    grouped.BACKWARD,
    few_channels.FORWARD,
    few_channels.BACKWARD,
    one_channel.FORWARD,
    one_channel.BACKWARD,
    layout.FORWARD,
    layout.BACKWARD,
    layout.MAX_POOL_FORWARD,
    layout.MAX_POOL_BACKWARD,
    avg_pool.FORWARD,
    avg_pool.BACKWARD,
    moments.VAR_MEAN,
    moments.BFLOAT16_SUM,
)

# For functions that are to give the same bits each time.
DETERMINISTIC: tuple[Lowering, ...] = (deterministic.MAX_POOL_BACKWARD,)

__all__ = ["DEFAULT", "DETERMINISTIC", "Lowering", "Recorder", "Watch", "unwatched"]
