"""Exchange with `torch.nn`: any module as a layer, and state dicts and modules both ways."""

from funcnets.interop.lifting import lift
from funcnets.interop.state_dict import (
    FunctionModule,
    InteropError,
    Rename,
    Transplanted,
    Values,
    from_module,
    from_state_dict,
    to_module,
    to_state_dict,
    transplant,
)

__all__ = [
    "FunctionModule",
    "InteropError",
    "Rename",
    "Transplanted",
    "Values",
    "from_module",
    "from_state_dict",
    "lift",
    "to_module",
    "to_state_dict",
    "transplant",
]
