"""Make views copies where they can't be views."""

import torch

from funcnets.compiler.graph.aliasing import is_exact, memory
from funcnets.compiler.graph.compilation import Compilation

aten = torch.ops.aten


def relax_views(compilation: Compilation) -> bool:
    """Replace `view` by `reshape`, which may copy, where strides may differ from the fake ones.

    A value that is written to stays a view; where it can't be one, PyTorch raises.
    """
    graph, overwritten = compilation.graph, compilation.analysis(memory).overwritten
    unsure = [
        node
        for node in graph.find_nodes(op="call_function", target=aten.view.default)
        if node not in overwritten and not is_exact(node.args[0])
    ]
    for node in unsure:
        node.target = aten.reshape.default
    return bool(unsure)
