"""The passes for inductor mend what inductor gets wrong."""

import pytest
import torch

from funcnets import jit, layers, losses, random
from funcnets.compiler.backends import inductor


def test_a_factor_beside_a_matrix_product_is_kept():
    """Inductor takes x @ y + alpha·z for `addmm`, and drops alpha."""
    arguments = [random.normal(random.key(i), (3, 3), torch.float64) for i in range(3)]

    def function(x, y, z):
        return torch.add(x @ y, z, alpha=0.5), torch.add(z, x @ y, alpha=2)

    torch.testing.assert_close(jit(function, backend="inductor")(*arguments), function(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_gradients_over_single_pixels_are_those_of_the_convolution(monkeypatch, bias, first):
    """On a CPU in a GPU's place, with weights in channels_last; the first layer has no input's."""
    seen = []
    monkeypatch.setattr(inductor, "is_pinned", lambda grad, x: seen.append(1) or True)
    conv = layers.conv2d(4, 3, padding=1, bias=bias)
    x = random.normal(random.key(0), (2, 4, 1, 1), torch.float64)
    params, state = conv.init(random.key(1), x)
    params["weight"] = params["weight"].contiguous(memory_format=torch.channels_last)

    def loss(params, x):
        x = x if first else x.sin()
        return conv.apply(params, state, x)[0].square().sum()

    argnums = 0 if first else (0, 1)
    expected = torch.func.grad(loss, argnums)(params, x)
    for backend in ("inductor", "graph"):
        gradient = jit(torch.func.grad(loss, argnums), backend=backend, lowerings=None)
        torch.testing.assert_close(gradient(params, x), expected)
    assert seen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", "gather", "embedding"])
def test_an_index_that_is_too_large_is_refused(name):
    table = torch.rand(4, 5)
    operations = {
        "cross_entropy": lambda index: losses.cross_entropy(table, index),
        "gather": lambda index: table.gather(1, index[:, None]) * 2,
        "embedding": lambda index: torch.nn.functional.embedding(index, table) * 2,
    }
    jitted = jit(operations[name], backend="inductor")
    jitted(torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"^jit: an index is out of range"):
        jitted(torch.tensor([0, 1, 7, 3]))
