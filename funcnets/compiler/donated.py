"""Donated tensors after the call: with FUNCNETS_DEBUG=donation, each use of one raises."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets.compiler.errors import DonatedError


class Donated(Tensor):
    """A tensor whose memory was donated: every operation on it raises DonatedError."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise, whatever is asked of the tensor."""
        name = getattr(func, "__name__", str(func))
        raise DonatedError(
            f"{name} of a tensor that was donated to `jit`, whose memory holds the result of that "
            "call: use what the call returned, or clone the argument before, or don't donate it "
            "(found by FUNCNETS_DEBUG=donation)"
        )

    def __repr__(self) -> str:  # type: ignore[override]
        """Return the text for debuggers and messages, which must not raise."""
        return "<a tensor that was donated to jit>"


def retire(tensors: Sequence[Tensor], positions: Sequence[int]) -> list[Tensor]:
    """Return the tensors, with new objects for those at `positions`, whose old ones are retired.

    A retired object raises DonatedError whenever it is used; the new one has its memory.  Only
    `torch.func.grad` and `vjp` read past the class of their arguments, and PyTorch gives no hook
    there: they find a tensor of booleans, for which they raise a RuntimeError of their own.
    """
    fresh = list(tensors)
    for position in positions:
        old = tensors[position]
        if type(old) in (Tensor, torch.nn.Parameter):
            fresh[position] = old.detach()
            if not old.is_inference():
                if old.is_leaf:
                    old.requires_grad_(False)
                old.data = old.new_empty(0, dtype=old.dtype if old.requires_grad else torch.bool)
            old.__class__ = Donated
    return fresh
