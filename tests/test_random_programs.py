"""Random programs of 3 to 30 operations give under `jit` what they give as they are.

They take derivatives (backward, forward, nested), are vmapped, are donated arguments, view and
write in place, and meet infinities and empty tensors.
"""

import pytest
import torch
from random_programs import program

import funcnets
from funcnets import tree

pytestmark = pytest.mark.usefixtures("verified")

QUICK, SLOW = 60, 1040  # programs; 3 to 20 a second
# Programs that PyTorch can't run as they are: memory formats under vmap, views of such.
UNSUPPORTED = ("inside of vmap", "inside vmap", "view size is not compatible")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(0, QUICK, 20))
def test_random_programs(first):
    compare(range(first, first + 20))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(QUICK, SLOW, 245))
def test_many_random_programs(first):
    compare(range(first, first + 245))


def compare(seeds):
    compared = sum(is_right(program(seed)) for seed in seeds)
    assert compared > 0.9 * len(seeds)


def is_right(each):
    """Compare one program under `jit` with itself; False if PyTorch can't run it."""
    try:
        expected = tree.leaves(each(*each.arguments()))
    except RuntimeError as error:
        if not any(reason in str(error) for reason in UNSUPPORTED):
            raise
        return False
    arguments, before = each.arguments(), each.arguments()
    results = funcnets.jit(each, donate_argnums=each.donated, backend="graph")(*arguments)
    limit = {"rtol": each.tolerance, "atol": each.tolerance, "equal_nan": True}
    torch.testing.assert_close(
        tree.leaves(results), expected, msg=lambda m: f"{m}\n{each}", **limit
    )
    for position, (argument, old) in enumerate(zip(arguments, before, strict=True)):
        if position not in each.donated:
            torch.testing.assert_close(argument, old, rtol=0, atol=0, msg=str(each))
    return True
