"""Operations that can raise because of the values of their operands, as an index out of range.

All else that can be wrong with a call is found before its graph runs.  So donated memory is written
only after the last such operation, and a call that raises leaves its arguments as they were.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx

from funcnets._torch import OpOverload

# Operands: a table, the dimension that is indexed, the index.
_BY_DIMENSION = {
    "gather": "elements",
    "scatter": "elements",
    "scatter_": "elements",
    "scatter_add": "elements",
    "scatter_add_": "elements",
    "scatter_reduce": "elements",
    "scatter_reduce_": "elements",
    "index_select": "slices",
    "index_add": "slices",
    "index_add_": "slices",
    "index_copy": "slices",
    "index_copy_": "slices",
    "index_fill": "slices",
    "index_fill_": "slices",
    "index_reduce": "slices",
    "index_reduce_": "slices",
}
# Operands: a table, its indices.
_BY_INDICES = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put"}
_INTEGER_DIVISIONS = {"div", "floor_divide", "remainder", "fmod", "div_", "remainder_", "fmod_"}
_OTHERS = {
    "_assert_async",
    "_assert_scalar",
    "_cdist_forward",
    "_ctc_loss",
    "_embedding_bag",
    "_embedding_bag_forward_only",
    "_functional_assert_async",
    "_functional_assert_scalar",
    "_index_put_impl_",
    "binary_cross_entropy",
    "bincount",
    "cholesky",
    "cholesky_inverse",
    "embedding",
    "embedding_renorm",
    "embedding_renorm_",
    "histc",
    "lu_unpack",
    "masked_scatter",
    "masked_scatter_",
    "max_unpool2d",
    "max_unpool3d",
    "multi_margin_loss",
    "multilabel_margin_loss_forward",
    "nll_loss2d_forward",
    "nll_loss_forward",
    "put",
    "put_",
    "repeat_interleave",
    "searchsorted",
    "segment_reduce",
    "take",
}
_LINEAR_ALGEBRA = ("linalg_", "_linalg_")
_OWN = {"aten", "funcnets", "prims", "_c10d_functional", "prim"}


def last_value_error(graph: fx.Graph) -> int:
    """Return the place of the last node that can raise because of its operands' values, or -1.

    An index that was used before for a table of the same shape raises no more.
    """
    checked: set[Hashable] = set()
    last = -1
    for place, node in enumerate(graph.nodes):
        check = _check(node)
        if check is not None and check not in checked:
            checked.add(check)
            last = place
    return last


def _check(node: fx.Node) -> Hashable:
    """Return what the operation checks of its operands' values; None for nothing."""
    operation = node.target
    if not isinstance(operation, OpOverload):
        return None
    name, operands = operation.overloadpacket.__name__, node.args
    if operation.namespace not in _OWN:
        return node
    if name in _BY_DIMENSION:
        return _BY_DIMENSION[name], operands[1], operands[2], _shape(operands[0])
    if name in _BY_INDICES:
        indices: Any = operands[1]
        return "indices", tuple(indices), _shape(operands[0])
    divides = name in _INTEGER_DIVISIONS and not _is_floating(node)
    return node if divides or name in _OTHERS or name.startswith(_LINEAR_ALGEBRA) else None


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _shape(operand: Any) -> torch.Size | None:
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    return value.shape if isinstance(value, Tensor) else None
