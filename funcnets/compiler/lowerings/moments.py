"""Mean and variance of each channel, and the sums of their derivative.

ATen's `var_mean` updates both with every element; the kernel of its batch norm takes two passes,
and less than a third of the time.  C++ that reads a map once, block by block, and adds up by
vectors is as fast as that for rows of many channels, and faster for other maps; bfloat16 it reads
as it is, for which ATen needs a copy in float32.  Milliseconds on two cores with AVX-512, ATen's
batch norm and this, batch 256: 6×24×24, 0.73 and 0.08; in channels_last 3.7 and 0.25, its sums 2.6
and 0.17; 64×7×7 in channels_last 0.08 and 0.05, of bfloat16 with the copy 0.12 and 0.06.  Sums on
two cores with AVX2, ATen's and these: 32×24×24 in channels_last 1.5 and 1.4, 64×7×7 0.17 and 0.10.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from funcnets.compiler.kernels.build import SCALARS
from funcnets.compiler.kernels.moments import (
    CHANNEL_MOMENTS,
    CHANNEL_SUM,
    _fills_vectors,
    _is_last,
    library,
)
from funcnets.compiler.lowerings.table import Lowering

aten = torch.ops.aten


def is_over_channels(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False
) -> bool:
    """Whether it is the biased variance over all but the channels, of a map without gaps."""
    if x.ndim not in (2, 4) or x.device.type != "cpu" or not x.numel() or correction or keepdim:
        return False
    usual = x.dtype in SCALARS and (x.is_contiguous() or _is_last(x))
    return usual and list(dim or ()) == [0, *range(2, x.ndim)]


def moments(x: Tensor, *arguments: object, **options: object) -> tuple[Tensor, Tensor]:
    """`aten.var_mean` where `is_over_channels`: variance and mean, (C,) each."""
    if _fills_vectors(x) and library(x.dtype) is not None:
        mean, variance = CHANNEL_MOMENTS(x)
    else:
        mean, variance = aten.batch_norm_update_stats(x, None, None, 0.0)
    return variance, mean


def is_narrow_sum(
    x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, **options: object
) -> bool:
    """Whether it is the sum over all but the channels, of a map in bfloat16 without gaps."""
    if x.ndim not in (2, 4) or x.device.type != "cpu" or not x.numel() or keepdim or options:
        return False
    usual = x.dtype is torch.bfloat16 and (x.is_contiguous() or _is_last(x))
    return usual and list(dim or ()) == [0, *range(2, x.ndim)] and library(x.dtype) is not None


MOMENTS = Lowering("moments", aten.var_mean.correction, is_over_channels, moments)
NARROW_SUM = Lowering(
    "moments.narrow_sum",
    aten.sum.dim_IntList,
    is_narrow_sum,
    lambda x, *dims: CHANNEL_SUM(x),
)
