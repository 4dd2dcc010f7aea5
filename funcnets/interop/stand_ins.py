"""Stand-ins for functions of PyTorch that don't take every transform."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """Return min(max(x + 3, 0), 6) / 6; PyTorch's gradient has no forward-mode derivative."""
    y = F.relu6(x + 3) / 6
    return x.copy_(y) if inplace else y


def _adaptive_avg_pool2d(x: Tensor, size: Any) -> Tensor:
    """Return the mean of each window; PyTorch's for one window has no rule for `vmap`."""
    if size in (1, (1, 1), [1, 1]):
        return x.mean((-2, -1), keepdim=True)
    return F.adaptive_avg_pool2d(x, size)


STAND_INS: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
}
