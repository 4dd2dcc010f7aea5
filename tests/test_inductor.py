"""The pass for inductor mends a number that inductor gets wrong."""

import torch

from funcnets import jit, random


def test_a_factor_beside_a_matrix_product_is_kept():
    """Inductor takes x @ y + alpha·z for `addmm`, and drops alpha."""
    arguments = [random.normal(random.key(i), (3, 3), torch.float64) for i in range(3)]

    def function(x, y, z):
        return torch.add(x @ y, z, alpha=0.5), torch.add(z, x @ y, alpha=2)

    torch.testing.assert_close(jit(function, backend="inductor")(*arguments), function(*arguments))
