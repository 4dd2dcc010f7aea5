"""Check that processes hold the same values, to the bit, at the price of a hash of each tensor."""

from typing import Any

import torch
from torch import Tensor

from funcnets import tree
from funcnets.parallel.axis import Axis

# Elements that are hashed at once: eight bytes of memory each.
ELEMENTS_PER_CHUNK = 2**20

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DivergenceError(RuntimeError):
    """Values that should be the same in all processes are not."""


def check_replicas(axis: Axis, values: Any) -> None:
    """Raise DivergenceError unless a tree of tensors has the same bits in all processes.

    The message names the leaves and the processes that differ from rank 0.  All processes raise it
    together.  It reads the values once, and sends eight bytes a leaf to each process.  A step by
    `parallel.gradient` keeps train states equal: a difference comes from a faulty machine, or from
    a step that depends on the process.

    >>> import torch
    >>> from funcnets.parallel import Axis, check_replicas
    >>> check_replicas(Axis(), {"weight": torch.ones(2)})
    """
    if axis.size == 1:
        return
    hashes = axis.gather(hash_leaves(values)).cpu()
    is_other = hashes != hashes[0]
    if not is_other.any():
        return
    names = tree.names(values)
    differing = [name for name, other in zip(names, is_other.any(0).tolist(), strict=True) if other]
    ranks = [f"rank {rank}" for rank, other in enumerate(is_other.any(1).tolist()) if other]
    raise DivergenceError(
        f"processes hold different values of {tree.listed(differing, 4)}: {', '.join(ranks)} and "
        "rank 0 differ; go on from the last checkpoint"
    )


def hash_leaves(values: Any) -> Tensor:
    """Return a hash of the bits of each leaf of a tree of tensors: int64, (leaves,).

    It depends on each element and its place; 0.0 and -0.0 have different bits.

    >>> import torch
    >>> from funcnets.parallel import hash_leaves
    >>> first, second = hash_leaves([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])])
    >>> bool(first == second)
    False
    """
    return torch.stack([_hash(leaf) for leaf in tree.leaves(values)])


def _hash(leaf: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.int64, device=leaf.device)
    bits = leaf.detach().contiguous().reshape(-1).view(_BITS[leaf.element_size()])
    for start in range(0, len(bits), ELEMENTS_PER_CHUNK):
        chunk = bits[start : start + ELEMENTS_PER_CHUNK].to(torch.int64)
        # Odd factors lose no bit of an element; sums and products wrap around.
        places = torch.arange(start, start + len(chunk), device=leaf.device)
        total = total + (chunk * (2 * places + 1)).sum()
    return total
