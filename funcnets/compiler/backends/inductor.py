"""A pass for inductor, which makes its result right."""

import torch

from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.edit import emit

aten = torch.ops.aten


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
