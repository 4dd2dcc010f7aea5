"""Autocast: PyTorch's setting that casts operands, by kind of device."""

import contextlib
from collections.abc import Iterator

import torch


def autocast_types() -> tuple[tuple[str, torch.dtype], ...]:
    """Return the kinds of devices on which operations are cast now, and the dtypes of these."""
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    )


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Disable autocast, as the casts are operations of the graph."""
    with contextlib.ExitStack() as stack:
        for device, _ in autocast_types():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
