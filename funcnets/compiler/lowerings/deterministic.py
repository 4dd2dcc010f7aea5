"""Max pooling's derivative on a GPU to the same bits each time, for `jit(..., deterministic=True)`.

ATen's kernel for channels_last adds the gradients of windows that overlap in no fixed order, by
atomic additions; its kernel for NCHW collects those of each pixel in order.
"""

from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.lowerings.table import Lowering

aten = torch.ops.aten


def is_on_gpu(grad: Tensor, x: Tensor, *how: Any) -> bool:
    """True on a GPU, for maps that aren't NCHW."""
    return x.is_cuda and not x.is_contiguous()


def backward(grad: Tensor, x: Tensor, *how: Any) -> Tensor:
    """Return `aten.max_pool2d_with_indices_backward`, by NCHW operands."""
    *window, indices = how
    operands = grad.contiguous(), x.contiguous()
    result: Tensor = aten.max_pool2d_with_indices_backward(*operands, *window, indices.contiguous())
    return result.contiguous(memory_format=torch.channels_last)


MAX_POOL_BACKWARD = Lowering(
    "deterministic.max_pool_backward",
    aten.max_pool2d_with_indices_backward.default,
    is_on_gpu,
    backward,
)
