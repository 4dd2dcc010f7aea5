"""Make views copies where they can't be views."""

import torch

from funcnets.compiler.errors import FormatError
from funcnets.compiler.graph.aliasing import is_exact, memory
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.edit import arguments, emit, replace

aten = torch.ops.aten


def spell_out_copies(compilation: Compilation) -> bool:
    """Replace each view that was recorded as a copy by `clone` and `view`.

    Raises FormatError if the view is written to, or what it is a view of: a copy wouldn't see that.
    """
    graph, overwritten = compilation.graph, compilation.analysis(memory).overwritten
    copies = graph.find_nodes(op="call_function", target=aten._reshape_copy.default)
    for node in copies:
        value, size = arguments(node)
        if node in overwritten or value in overwritten:
            raise FormatError(f"jit: {node} is written to, and can't be a view")
        with graph.inserting_before(node):
            copy = emit(graph, aten.clone.default, value, memory_format=torch.contiguous_format)
            view = emit(graph, aten.view.default, copy, size)
        replace({node: view})
    return bool(copies)


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
