"""Refuse functions that do more than compute a result from their arguments."""

import torch

from funcnets.compiler.errors import TraceError
from funcnets.compiler.graph.aliasing import is_input, memory, written
from funcnets.compiler.graph.compilation import Compilation


def check_purity(compilation: Compilation) -> bool:
    """Raise TraceError if the graph writes to an argument, or draws from a hidden generator."""
    owners = compilation.analysis(memory).owners
    for node in compilation.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise TraceError(
                f"jit: {node.target} draws from torch's hidden generator: "
                "take a key and draw with funcnets.random"
            )
        if any(is_input(owners[operand]) for operand in written(node)):
            raise TraceError(
                f"jit: {node.target} writes to an argument of the function, or to a tensor that it "
                "captured: return the new value instead (donate_argnums reuses the memory)"
            )
    return False
