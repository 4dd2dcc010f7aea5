"""What loops are made of: operations element by element, as C++ of their operands."""

import functools
import math
from typing import Any

import torch
from torch import fx

from funcnets.compiler.kernels.build import COMPUTED, STORED

aten = torch.ops.aten

# Operations as C++ of their operands, in order; what else they take by name.
EXPRESSIONS: dict[Any, str] = {
    aten.add.Tensor: "{0} + {alpha} * {1}",
    aten.sub.Tensor: "{0} - {alpha} * {1}",
    aten.mul.Tensor: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.rsqrt.default: "1 / root({0})",
    aten.pow.Tensor_Scalar: "{0} * {0} * {0}",  # as the derivative of rsqrt has it
    aten.addcmul.default: "{0} + {value} * {1} * {2}",
    aten.lerp.Scalar: "{2} < 0.5 ? {0} + {2} * ({1} - {0}) : {1} - (1 - {2}) * ({1} - {0})",
    # These let what isn't a number through, as ATen does.
    aten.relu.default: "{0} <= 0 ? 0 : {0}",
    aten.threshold_backward.default: "{1} <= {2} ? 0 : {0}",
    aten.sigmoid.default: "1 / (1 + exponential(-{0}))",
    aten.sigmoid_backward.default: "{0} * (1 - {1}) * {1}",
    aten.tanh_backward.default: "{0} * (1 - {1} * {1})",
    aten._to_copy.default: "{0}",  # to another type
}
# Those whose results need no rounding, where their operands are rounded.
EXACT = {aten.neg.default, aten.relu.default, aten.threshold_backward.default}


def is_element_wise(node: fx.Node) -> bool:
    """True if the node is one of `EXPRESSIONS`, of tensors on the CPU in types that loops know."""
    converts = node.target is aten._to_copy.default
    known = {"dtype", "layout", "device"} if converts else {"alpha", "value"}
    if node.target not in EXPRESSIONS or node.kwargs.keys() - known:
        return False
    values = [node.meta["val"], *(operand.meta["val"] for operand in node.all_input_nodes)]
    numbers = [x for x in (*node.args, *node.kwargs.values()) if not isinstance(x, fx.Node)]
    return (
        all(x.device.type == "cpu" and x.dtype in STORED for x in values)
        and (converts or _promotes(*(x.dtype for x in values)))
        and (converts or all(isinstance(x, int | float) and math.isfinite(x) for x in numbers))
        and (node.target is not aten.pow.Tensor_Scalar or numbers == [3])
        and (node.target is not aten.add.Scalar or len(numbers) == 1)  # no factor
    )


def element_wise(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the nodes of `graph` for which `is_element_wise` is true."""
    return frozenset(filter(is_element_wise, graph.nodes))


def _promotes(result: torch.dtype, *operands: torch.dtype) -> bool:
    """Whether the result has the type of the widest operand, in which it is then computed."""
    return functools.reduce(torch.promote_types, operands) is result


def expression(node: fx.Node, names: dict[fx.Node, str]) -> str:
    """C++ of an operation, with its operands by their names."""

    def literal(number: Any) -> str:
        return f"{COMPUTED[node.meta['val'].dtype]}({float(number)!r})"

    values = [names[x] if isinstance(x, fx.Node) else literal(x) for x in node.args]
    if node.target is aten._to_copy.default:
        return values[0]
    factors = {"alpha": 1, "value": 1} | node.kwargs
    scalars = {name: literal(factor) for name, factor in factors.items()}
    return EXPRESSIONS[node.target].format(*values, **scalars)
