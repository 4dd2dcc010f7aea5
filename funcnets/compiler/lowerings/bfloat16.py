"""Products of bfloat16 numbers in float32, on processors without instructions for bfloat16.

There ATen's kernels convert each number alone. Milliseconds on two cores with AVX2, by `funcnets
bench resnet18 --batch-size 64 --lowerings --precision bfloat16 --only graph`, ATen's and these: a
convolution of 64×7×7, 3×3 to 64 channels, 53 and 3.1, its derivative 49 and 4.9; the derivative of
one of 512×1×1, 3×3 to 512 channels, 3132 and 46.

The product of two bfloat16 numbers is exact in float32, and processors that have instructions for
bfloat16 sum in float32, too. So the result is the same but for the order of the sums; it is rounded
to bfloat16 once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcnets import tree
from funcnets.compiler.kernels.cpu import has_bfloat16
from funcnets.compiler.lowerings.table import Lowering

aten = torch.ops.aten


def is_faster(x: Tensor, *arguments: Any, **options: Any) -> bool:
    """True if operands are bfloat16 on a CPU without instructions for it."""
    return x.dtype is torch.bfloat16 and x.device.type == "cpu" and not has_bfloat16()


def in_float32(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operation on operands in float32, with results in bfloat16."""

    def rewrite(*arguments: Any, **options: Any) -> Any:
        converted = [tree.map(_to(torch.float32), argument) for argument in arguments]
        return tree.map(_to(torch.bfloat16), operation(*converted, **options))

    return rewrite


def _to(dtype: torch.dtype) -> Callable[[Any], Any]:
    return lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) else leaf


OPERATIONS = (
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
)
LOWERINGS = tuple(
    Lowering(
        f"bfloat16.{operation.overloadpacket.__name__}",
        operation,
        is_faster,
        in_float32(operation),
    )
    for operation in OPERATIONS
)
