"""Operations of funcnets' own in a graph: functions that nothing traces or compiles through."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

_LIBRARY = torch.library.Library("funcnets", "DEF")


def define(
    signature: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    devices: Sequence[str] = ("CPU",),
) -> Any:
    """Return the operation `funcnets::<signature>`, which is `function` on these devices.

    `fake` gives what it gives for fake tensors: the same shapes and strides.  The function must
    neither change an argument nor return a part of one.
    """
    name = signature.split("(")[0]
    _LIBRARY.define(signature, tags=(torch.Tag.needs_exact_strides,))
    for device in devices:
        _LIBRARY.impl(name, function, device)
    torch.library.register_fake(f"funcnets::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.funcnets, name).default
