"""Stand-ins for functions of PyTorch that don't take every transform."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return min(max(x + 3, 0), 6) / 6; PyTorch's gradient has no forward-mode derivative."""
    y = F.relu6(input + 3) / 6
    return input.copy_(y) if inplace else y


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Return the mean of each window; PyTorch's for one window has no rule for `vmap`."""
    if output_size in (1, (1, 1), [1, 1]):
        return input.mean((-2, -1), keepdim=True)
    return F.adaptive_avg_pool2d(input, output_size)


STAND_INS: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
}
