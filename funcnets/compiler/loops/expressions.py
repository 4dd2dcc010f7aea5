"""Element-wise operations as C++ expressions of their operands."""

import functools
import math
from typing import Any

import torch
from torch import fx

from funcnets.compiler.kernels.build import MEMORY_TYPES, REGISTER_TYPES

aten = torch.ops.aten

# C++ of each operation; positional operands by their index, keyword arguments by their name.
EXPRESSIONS: dict[Any, str] = {
    aten.add.Tensor: "{0} + {alpha} * {1}",
    aten.sub.Tensor: "{0} - {alpha} * {1}",
    aten.mul.Tensor: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.rsqrt.default: "1 / square_root({0})",
    aten.pow.Tensor_Scalar: "{0} * {0} * {0}",  # the cube, as the derivative of rsqrt has it
    aten.addcmul.default: "{0} + {value} * {1} * {2}",
    aten.lerp.Scalar: (
        "multiply_add({2} < 0.5 ? {2} : {2} - 1, {1} - {0}, {2} < 0.5 ? {0} : {1})"  # as ATen does
    ),
    # Comparisons are such that NaN passes, as with ATen.
    aten.relu.default: "{0} <= 0 ? 0 : {0}",
    aten.threshold_backward.default: "{1} <= {2} ? 0 : {0}",
    aten.sigmoid.default: "1 / (1 + exponential(-{0}))",
    aten.sigmoid_backward.default: "{0} * (1 - {1}) * {1}",
    aten.tanh_backward.default: "{0} * (1 - {1} * {1})",
    aten._to_copy.default: "{0}",  # to another dtype
}
# Results that need no rounding, as the operands are rounded.
EXACT = {aten.neg.default, aten.relu.default, aten.threshold_backward.default}


def is_element_wise(node: fx.Node) -> bool:
    """True if the node is one of `EXPRESSIONS`, on CPU tensors of dtypes that loops support."""
    converts = node.target is aten._to_copy.default
    known = {"dtype", "layout", "device"} if converts else {"alpha", "value"}
    if node.target not in EXPRESSIONS or node.kwargs.keys() - known:
        return False
    values = [node.meta["val"], *(operand.meta["val"] for operand in node.all_input_nodes)]
    scalars = [x for x in (*node.args, *node.kwargs.values()) if not isinstance(x, fx.Node)]
    return (
        all(x.device.type == "cpu" and x.dtype in MEMORY_TYPES for x in values)
        and (converts or _is_promoted(*(x.dtype for x in values)))
        and (converts or all(isinstance(x, int | float) and math.isfinite(x) for x in scalars))
        and (node.target is not aten.pow.Tensor_Scalar or scalars == [3])
        and (node.target is not aten.add.Scalar or len(scalars) == 1)  # no alpha
    )


def element_wise(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the nodes of `graph` for which `is_element_wise` is true."""
    return frozenset(filter(is_element_wise, graph.nodes))


def _is_promoted(result: torch.dtype, *operands: torch.dtype) -> bool:
    """True if the result has the promoted dtype of the operands, in which a loop computes."""
    return functools.reduce(torch.promote_types, operands) is result


def expression(node: fx.Node, names: dict[fx.Node, str]) -> str:
    """Return C++ of an operation, with the names of its operands."""

    def literal(number: Any) -> str:
        return f"{REGISTER_TYPES[node.meta['val'].dtype]}({float(number)!r})"

    values = [names[x] if isinstance(x, fx.Node) else literal(x) for x in node.args]
    if node.target is aten._to_copy.default:
        return values[0]
    scalars = {name: literal(x) for name, x in ({"alpha": 1, "value": 1} | node.kwargs).items()}
    return EXPRESSIONS[node.target].format(*values, **scalars)
