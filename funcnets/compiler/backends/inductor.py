"""Passes for inductor, which make its result right, and fast on a CPU.

On a CPU inductor converts every convolution to channels_last, or its operands to the format of its
result (the gradient of the weight of LeNet's first layer takes 23 ms in the format that it chooses,
and 3 in the one that the graph asks for).  Of max pooling and of the sums of batch norm it makes
loops of its own, which are slower, and take most of the time to compile.  Operations with names
that it doesn't know are opaque to it: it calls them as they are.  Operations that it fuses well, as
average pooling into the activation before it, keep their names.
"""

from typing import Any

import torch

from funcnets.compiler.graph.compilation import Compilation
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
    """Define the same operation under the name `funcnets::<its name>`."""

    def fake(*arguments: Any) -> Any:
        results = operation(*arguments)
        if operation is not aten.native_batch_norm_backward.default:
            return results
        wanted = arguments[-1]  # on fake tensors ATen gives the others too
        return tuple(x if given else None for x, given in zip(results, wanted, strict=True))

    return define(str(operation._schema).removeprefix("aten::"), operation, fake)


OPAQUE = {operation: _renamed(operation) for operation in _OPERATIONS}


def make_opaque(compilation: Compilation) -> bool:
    """Call operations that ATen does better than inductor on a CPU by their opaque names."""
    found = [
        node
        for node in compilation.graph.nodes
        if node.target in OPAQUE and node.args[0].meta["val"].device.type == "cpu"
    ]
    for node in found:
        node.target = OPAQUE[node.target]
    return bool(found)


def spell_out_factors(compilation: Compilation) -> bool:
    """Write x + alpha·y as a product and a sum.

    Where x or y is a matrix product, inductor makes `addmm` of both and drops the factor (seen with
    torch 2.14).
    """
    graph = compilation.graph
    found = [
        node
        for node in graph.find_nodes(op="call_function", target=aten.add.Tensor)
        if "alpha" in node.kwargs
    ]
    for node in found:
        x, y = node.args
        with graph.inserting_before(node):
            product = emit(graph, aten.mul.Scalar, y, node.kwargs["alpha"])
        node.args, node.kwargs = (x, product), {}
    return bool(found)
