"""Zeros that forward-mode derivatives put where there is no tangent.

PyTorch marks such zeros (`_efficientzerotensor`): a product with one is zero, also where the other
factor is infinite, while zero times infinity is NaN.  A graph knows no marks, so the products are
left out while the graph is recorded, by the rules of PyTorch's kernels for marked zeros.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcnets._torch import storage_id

aten = torch.ops.aten


class AbsentTangents:
    """Rewrites of operations on marked zeros, for one recording.

    `rewrites` maps operations to functions that return marked zeros, or NotImplemented where the
    result has to be computed.  A view of marked zeros is marked, as both share their memory.
    """

    def __init__(self) -> None:
        # By the number of the storage, which is kept alive so that no other one gets the number.
        self._storages: dict[int, torch.UntypedStorage] = {}
        self.rewrites: dict[Any, Callable[..., Any]] = {
            aten._efficientzerotensor.default: self._zeros,
            aten.mul.Tensor: self._product,
            aten.mul.Scalar: self._product,
            aten.dot.default: self._dot,
            aten.linalg_cross.default: self._cross,
            aten.div.Tensor: self._quotient,
            aten.add.Tensor: self._sum,
            aten.sub.Tensor: self._sum,
        }

    def _zeros(self, size: Any, **options: Any) -> Tensor:
        zeros = torch.zeros(size, **options)
        storage = zeros.untyped_storage()
        self._storages[storage_id(zeros)] = storage
        return zeros

    def _is_absent(self, value: Any) -> bool:
        return isinstance(value, Tensor) and storage_id(value) in self._storages

    def _product(self, x: Any, y: Any) -> Any:
        is_absent = self._is_absent(x) or self._is_absent(y)
        return self._like(x, y) if is_absent else NotImplemented

    def _quotient(self, x: Any, y: Any) -> Any:
        is_absent = self._is_absent(x) and not self._is_absent(y)
        return self._like(x, y) if is_absent else NotImplemented

    def _sum(self, x: Any, y: Any, *, alpha: Any = 1) -> Any:
        is_absent = self._is_absent(x) and self._is_absent(y)
        return self._like(x, y) if is_absent else NotImplemented

    def _dot(self, x: Tensor, y: Tensor) -> Any:
        is_absent = self._is_absent(x) or self._is_absent(y)
        return self._zeros((), dtype=x.dtype, device=x.device) if is_absent else NotImplemented

    def _cross(self, x: Tensor, y: Tensor, *, dim: int = -1) -> Any:
        return self._product(x, y)

    def _like(self, x: Any, y: Any) -> Tensor:
        """Return marked zeros of the shape and dtype that an element-wise operation gives."""
        tensors = [value for value in (x, y) if isinstance(value, Tensor)]
        shape = torch.broadcast_shapes(*(value.shape for value in tensors))
        return self._zeros(shape, dtype=torch.result_type(x, y), device=tensors[0].device)
