"""Tensors that a jitted function captured, which are constants of its graph."""

from collections.abc import Sequence

from torch import Tensor

from funcnets._torch import storage_id, version_of
from funcnets.compiler.errors import TraceError


class Captured:
    """The captured tensors of a graph, as they were when the function was traced."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._versions = [(tensor, version_of(tensor)) for tensor in tensors]

    def check(self, donated: Sequence[Tensor]) -> None:
        """Raise unless the tensors are as they were, and share no memory with donated ones.

        Raises:
            TraceError: for a tensor that was changed after the function was traced.
            ValueError: for a tensor that shares its memory with one of `donated`.
        """
        if not self._versions:
            return
        given = {storage_id(tensor) for tensor in donated}
        for constant, version in self._versions:
            if storage_id(constant) in given:
                raise ValueError(
                    f"jit: a donated tensor of shape {tuple(constant.shape)} shares its memory "
                    "with one that the function captured: clone one of them, or don't donate"
                )
            if version_of(constant) != version:
                raise TraceError(
                    f"jit: a captured tensor of shape {tuple(constant.shape)} changed after the "
                    "function was traced: pass it as an argument, so that its value is read"
                )
