"""Exchange with `torch.nn` and `flax.linen`.

Any module is made a layer; state dicts, modules and Flax's variables are converted both ways.
"""

from funcnets.interop.flax_variables import from_flax, to_flax
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
    "from_flax",
    "from_module",
    "from_state_dict",
    "lift",
    "to_flax",
    "to_module",
    "to_state_dict",
    "transplant",
]
