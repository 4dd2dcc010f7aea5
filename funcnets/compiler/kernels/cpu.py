"""Properties of the processor that lowering rules depend on, and its preferred memory format."""

import functools
from typing import Any

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """Return `x` in memory format channels_last (NHWC), also where it has a single channel."""
    return x.to(memory_format=torch.channels_last)


def contiguous_channels_last(x: Tensor) -> Tensor:
    """Return `x` in channels_last without gaps in memory, as kernels in C++ read it.

    `channels_last` leaves a slice of channels of a wider feature map as it is.
    """
    x = channels_last(x)
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch.channels_last)


@functools.cache
def has_avx512() -> bool:
    """True if PyTorch, and oneDNN in it, use AVX-512 on this processor."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def has_bfloat16() -> bool:
    """True if oneDNN has matrix products in bfloat16 for this processor."""
    mkldnn: Any = torch.backends.mkldnn
    return bool(mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
