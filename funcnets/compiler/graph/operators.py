"""Operations of funcnets' own in a graph: functions that nothing traces or compiles through."""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("funcnets", "DEF")


def define(signature: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The operation `funcnets::<signature>`, which is `function` on a CPU.

    `fake` gives what it gives for fake tensors: the same shapes and strides.  The function must
    neither change an argument nor return a part of one.
    """
    name = signature.split("(")[0]
    _LIBRARY.define(signature, tags=(torch.Tag.needs_exact_strides,))
    _LIBRARY.impl(name, function, "CPU")
    torch.library.register_fake(f"funcnets::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.funcnets, name).default
