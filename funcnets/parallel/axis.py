"""The axis along which processes work together, and the one collective that all else is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from funcnets import _torch, tree
from funcnets._validate import is_whole


@dataclass(frozen=True)
class Axis:
    """Processes that work on one batch together, as an explicit argument; `Axis()` is one alone.

    What an axis name is to `jax.lax.psum`: a function that sums over processes is given the axis,
    and with `Axis()`, the default, computes the same in a single process.  Every process has to
    call the same collectives in the same order, so nothing may branch on the rank around them.

    The examples of a batch are dealt out in turns: process r of n has the rows r, r + n, r + 2n, …
    of it, so that a process knows the global index of each of its rows without knowing how many
    there are, and shares differ by one example at most.

    >>> import torch
    >>> from funcnets.parallel import Axis
    >>> Axis().psum({"loss": torch.tensor(2.0)})
    {'loss': tensor(2.)}
    >>> Axis(size=2, rank=1).shard(torch.arange(5))
    tensor([1, 3])

    Attributes:
        size: number of processes.
        rank: number of this process, from 0.
        group: name of the process group of torch.distributed ("0" is the default group's).

    Raises ValueError for a size below 1, or a rank outside of it.
    """

    size: int = 1
    rank: int = 0
    group: str = "0"

    def __post_init__(self) -> None:
        if not is_whole(self.size, 1) or not is_whole(self.rank, 0) or self.rank >= self.size:
            raise ValueError(
                f"parallel.Axis: rank {self.rank!r} of {self.size!r} processes; expected a size "
                "of 1 or more, and a rank from 0 to size - 1"
            )

    def psum(self, values: Any) -> Any:
        """Return the sum of `values`, a tree of tensors, over all processes: the same on each.

        One all-reduce for each dtype among the leaves, which are sent as one flat vector.  It works
        under `grad`, `jvp`, `vmap` and `jit`.  Its derivative is the sum of the derivatives that
        the processes compute: take the gradient of a process's own share of the loss, then sum;
        a loss that was summed before would give each gradient `size` times.

        Raises TypeError for a leaf that is no tensor, or a boolean one.
        """
        leaves, structure = tree.flatten(values)
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or leaf.dtype is torch.bool:
                given = f"a {leaf.dtype} tensor" if isinstance(leaf, Tensor) else repr(leaf)
                raise TypeError(f"psum: got {given}, expected tensors of numbers")
        if self.size == 1:
            return values
        summed: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [place for place, leaf in enumerate(leaves) if leaf.dtype == dtype]
            results = self._sum([leaves[place] for place in places])
            summed.update(zip(places, results, strict=True))
        return tree.unflatten((summed[place] for place in range(len(leaves))), structure)

    def gather(self, x: Tensor) -> Tensor:
        """Return the `x` of each process, (size, *x.shape), in the order of ranks.

        A `psum` of rows that are zero but for the process's own, so it is differentiable too; meant
        for small tensors, as each process sends `size` times its own.
        """
        if self.size == 1:
            return x[None]
        before, after = self.rank, self.size - 1 - self.rank
        rows = F.pad(x.reshape(1, -1), (0, 0, before, after))
        gathered: Tensor = self.psum(rows)
        return gathered.reshape(self.size, *x.shape)

    def shard(self, x: Tensor) -> Tensor:
        """Return this process's rows of `x`, contiguous; the first dimension is the batch's."""
        return x if self.size == 1 else x[self.rank :: self.size].contiguous()

    def rows(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """Return the global indices of the first `count` examples of this process: int64."""
        return torch.arange(count, device=device) * self.size + self.rank

    def _sum(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Sum tensors of one dtype by one all-reduce."""
        flat = [leaf.reshape(-1) for leaf in leaves]
        summed = _all_reduce(torch.cat(flat) if len(flat) > 1 else flat[0], self.group)
        parts = torch.split(summed, [leaf.numel() for leaf in leaves])
        return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


class _AllReduce(torch.autograd.Function):
    """The sum over a process group, which is linear: its derivatives are the same sum."""

    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        _register_shapes()
        started = torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group)
        summed: Tensor = torch.ops._c10d_functional.wait_tensor(started)
        return summed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(cotangent, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _all_reduce(tangent, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, group: str) -> tuple[Tensor, int]:
        return _all_reduce(x, group), in_dims[0]


def _all_reduce(x: Tensor, group: str) -> Tensor:
    summed: Tensor = _AllReduce.apply(x, group)
    return summed


def _register_shapes() -> None:
    """Let the collectives know shapes, for fake tensors, and count as having side effects."""
    _torch.import_collectives()
