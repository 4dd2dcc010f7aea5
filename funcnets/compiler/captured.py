"""Tensors that a jitted function captured, which are constants of its graph."""

from collections.abc import Sequence

from torch import Tensor

from funcnets.compiler.errors import TraceError


class Captured:
    """The captured tensors of a graph, as they were when the function was traced."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._versions = [(tensor, _version(tensor)) for tensor in tensors]

    def check(self, donated: Sequence[Tensor]) -> None:
        """Raise unless the tensors are as they were, and share no memory with donated ones.

        Raises:
            TraceError: for a tensor that was changed after the function was traced.
            ValueError: for a tensor that shares its memory with one of `donated`.
        """
        if not self._versions:
            return
        given = {_memory(tensor) for tensor in donated}
        for constant, version in self._versions:
            if _memory(constant) in given:
                raise ValueError(
                    f"jit: a donated tensor of shape {tuple(constant.shape)} shares its memory "
                    "with one that the function captured: clone one of them, or don't donate"
                )
            if _version(constant) != version:
                raise TraceError(
                    f"jit: a captured tensor of shape {tuple(constant.shape)} changed after the "
                    "function was traced: pass it as an argument, so that its value is read"
                )


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _version(constant: Tensor) -> int:
    # Inference tensors count no versions: a change to one goes unseen.
    return 0 if constant.is_inference() else constant._version
