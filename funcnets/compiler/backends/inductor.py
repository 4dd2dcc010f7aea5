"""What inductor is told of a graph, so that its result is right, and fast on a CPU.

It turns every convolution on a CPU to channels_last, or its operands to the format of its result
(the weight's gradient of LeNet's first layer takes 23 ms in the format that it chooses, and 3 in
the one that the graph asks for), and makes loops of its own of max pooling and of batch norm's
sums, which are slower, and most of what there is to compile.  Under names that it doesn't know it
calls these operations as they are.  What it fuses well, as average pooling into the activation
before it, stays its own.
"""

from typing import Any

import torch
from torch import fx

from funcnets.compiler.graph.edit import emit
from funcnets.compiler.graph.operators import define

aten = torch.ops.aten
_OPERATIONS = (
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool2d_with_indices_backward.default,
    aten.batch_norm_update_stats.default,
    aten.native_batch_norm_backward.default,
)


def _renamed(operation: Any) -> Any:
    """The same operation by the name `funcnets::<its name>`."""

    def fake(*arguments: Any) -> Any:
        results = operation(*arguments)
        if operation is not aten.native_batch_norm_backward.default:
            return results
        wanted = arguments[-1]  # on fake tensors ATen gives the others too
        return tuple(x if given else None for x, given in zip(results, wanted, strict=True))

    return define(str(operation._schema).removeprefix("aten::"), operation, fake)


OPAQUE = {operation: _renamed(operation) for operation in _OPERATIONS}


def make_opaque(graph: fx.GraphModule) -> None:
    """Give operations of `graph` that ATen does better, on a CPU, their other names."""
    for node in graph.graph.nodes:
        if node.target in OPAQUE and node.args[0].meta["val"].device.type == "cpu":
            node.target = OPAQUE[node.target]
    graph.recompile()


def spell_out_factors(graph: fx.GraphModule) -> None:
    """Write x + alpha·y as a product and a sum: where x or y is a matrix product, alpha is lost.

    Inductor makes `addmm` of that and drops the factor (seen with torch 2.14).
    """
    for node in graph.graph.nodes:
        if node.target is aten.add.Tensor and "alpha" in node.kwargs:
            x, y = node.args
            with graph.graph.inserting_before(node):
                product = emit(graph.graph, aten.mul.Scalar, y, node.kwargs["alpha"])
            node.args, node.kwargs = (x, product), {}
    graph.recompile()
