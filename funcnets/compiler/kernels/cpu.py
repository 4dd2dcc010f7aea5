"""Properties of the processor that rules go by, and its faster memory format."""

import functools

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """The same numbers with the channels of a pixel side by side, even where there is one."""
    return x.to(memory_format=torch.channels_last)


@functools.cache
def has_avx512() -> bool:
    """Whether PyTorch, and oneDNN in it, use this processor's vectors of 512 bits."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def has_bfloat16() -> bool:
    """Whether oneDNN has products in bfloat16 for this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
