"""What inductor is told changes no number, and mends one that it gets wrong."""

import pytest
import torch

from funcnets import jit, random
from funcnets.compiler.backends import inductor

aten = torch.ops.aten
X, Y, WEIGHT = (
    random.normal(random.key(seed), shape)
    for seed, shape in enumerate([(2, 4, 6, 6), (2, 3, 4, 4), (3, 4, 3, 3)])
)
HOW = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
POOLED, INDICES = aten.max_pool2d_with_indices(X, [2, 2])
MEAN, VARIANCE = aten.batch_norm_update_stats(X, None, None, 0.0)
CALLS = {
    aten.convolution.default: (X, WEIGHT, None, *HOW),
    aten.convolution_backward.default: (Y, X, WEIGHT, None, *HOW, [False, True, False]),
    aten.max_pool2d_with_indices.default: (X, [2, 2]),
    aten.max_pool2d_with_indices_backward.default: (
        *(POOLED, X, [2, 2], [2, 2], [0, 0], [1, 1], False, INDICES),
    ),
    aten.batch_norm_update_stats.default: (X, None, None, 0.0),
    aten.native_batch_norm_backward.default: (
        *(X, X, None, None, None, MEAN, VARIANCE, True, 0.0, [False, True, True]),
    ),
}


def test_every_opaque_operation_is_called_here():
    assert CALLS.keys() == inductor.OPAQUE.keys()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("operation", CALLS, ids=str)
def test_an_opaque_operation_is_the_operation(operation, last):
    """The same values, and fake tensors of the same shapes and strides."""
    arguments = tuple(
        argument.to(memory_format=torch.channels_last)
        if last and isinstance(argument, torch.Tensor) and argument.ndim == 4
        else argument
        for argument in CALLS[operation]
    )
    opaque = inductor.OPAQUE[operation]
    torch.testing.assert_close(opaque(*arguments), operation(*arguments), rtol=0, atol=0)
    torch.library.opcheck(opaque, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_factor_beside_a_matrix_product_is_kept():
    """Inductor takes x @ y + alpha·z for `addmm`, and drops alpha."""
    arguments = [random.normal(random.key(i), (3, 3), torch.float64) for i in range(3)]

    def function(x, y, z):
        return torch.add(x @ y, z, alpha=0.5), torch.add(z, x @ y, alpha=2)

    torch.testing.assert_close(jit(function, backend="inductor")(*arguments), function(*arguments))
