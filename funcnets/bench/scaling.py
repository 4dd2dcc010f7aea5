"""A training step in several processes: computation against communication."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from funcnets import parallel, timing
from funcnets._torch import TorchDispatchMode
from funcnets.bench.cases import Case
from funcnets.bench.contenders import Contender, functional_step, train_step
from funcnets.bench.table import Unit
from funcnets.compiler.backends.select import Backend
from funcnets.parallel import Axis, Processes
from funcnets.parallel.launch import call


class Scaling(NamedTuple):
    """The time of a training step in several processes of this machine, and its parts.

    What communication costs is `step` less `computation`.  A sum of gradients that went on during
    the backward pass, as in DistributedDataParallel, would hide the time of that sum at most.
    """

    network: str
    batch_size: int  # of all processes together
    side: Annotated[int, Unit("pixels")]
    precision: str
    backend: str
    rounds: int
    processes: int
    threads: int  # of each process
    step: Annotated[float, Unit("ms")]
    computation: Annotated[float, Unit("ms")]  # the same step, without its collectives
    collectives: int
    sent: Annotated[float, Unit("MB")]  # by each process
    communication: Annotated[float, Unit("ms")]  # the collectives alone, one after another
    gradients_sent: Annotated[float, Unit("MB", "gradients")]  # of it, by the sum of gradients
    gradients: Annotated[float, Unit("ms")]  # that sum alone
    median: Annotated[float, Unit("examples/s")]
    ratio: float  # of examples/s, to the first number of processes


class Parts(NamedTuple):
    """The measurements of a process: medians in seconds, and the bytes that it sends."""

    step: float
    computation: float
    communication: float
    gradients: float
    collectives: int
    sent: int  # bytes
    gradients_sent: int  # bytes
    threads: int


def time_processes(
    case: Case, precision: str, backend: Backend, processes: Sequence[int], *, rounds: int
) -> Iterator[Scaling]:
    """Yield a row for each number of processes, as soon as it is measured.

    All divide the same batch.  The times are those of rank 0, medians over `rounds`.

    Raises RuntimeError if a process fails.
    """
    first: float | None = None
    for count in processes:
        parts = call(count, measure, case, precision, backend, rounds)[0]
        speed = case.batch_size / parts.step
        first = first or speed
        yield Scaling(
            *case[:3],
            precision,
            backend,
            rounds,
            count,
            parts.threads,
            step=1e3 * parts.step,
            computation=1e3 * parts.computation,
            collectives=parts.collectives,
            sent=parts.sent / 1e6,
            communication=1e3 * parts.communication,
            gradients_sent=parts.gradients_sent / 1e6,
            gradients=1e3 * parts.gradients,
            median=speed,
            ratio=speed / first,
        )


def measure(case: Case, precision: str, backend: Backend, rounds: int) -> Parts:
    """Time a step in this process, one of those that torchrun or `parallel.launch` started."""
    with parallel.join(case.device) as processes:
        axis = processes.axis
        step = partial(functional_step, case, precision, backend=backend)
        eager, train_state, batch = train_step(case, precision, axis)
        with Messages() as messages:
            eager(train_state, batch)
        sent = [torch.zeros(size, dtype=dtype, device=case.device) for size, dtype in messages.sent]
        gradients = sorted(sent, key=len)[-1:]
        alone = step(axis=Unsent(axis.size, axis.rank, axis.group))
        turns: dict[str, Callable[[], object]] = {
            "step": _waiting(step(axis=axis)),
            "computation": _until_all_end(processes, _waiting(alone)),
            "communication": partial(_sum_each, axis, sent),
            "gradients": partial(_sum_each, axis, gradients),
        }
        for turn in turns.values():
            turn()
            turn()
        seconds = timing.medians(timing.interleave(turns, rounds))
        size, gradients_size = (sum(each.nbytes for each in part) for part in (sent, gradients))
        threads = torch.get_num_threads()
        return Parts(
            **seconds,
            collectives=len(sent),
            sent=size,
            gradients_sent=gradients_size,
            threads=threads,
        )


class Unsent(Axis):
    """An axis that sends nothing: each process goes on with its own part of each sum."""

    def _sum(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        return leaves


class Messages(TorchDispatchMode):
    """Context that notes the size and dtype of each sum over processes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: list[tuple[int, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation."""
        if func is torch.ops._c10d_functional.all_reduce.default:
            self.sent.append((args[0].numel(), args[0].dtype))
        return func(*args, **(kwargs or {}))


def _waiting(step: Contender) -> Callable[[], float]:
    """Return a step that waits for its loss."""

    def run() -> float:
        loss: Any = step()
        return float(loss)

    return run


def _sum_each(axis: Axis, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        summed: Tensor = axis.psum(tensor)
        float(summed[0])  # waits for a GPU


def _until_all_end(processes: Processes, step: Callable[[], object]) -> Callable[[], object]:
    """Return a step after which each process waits for the others, as a sum of gradients does."""

    def run() -> None:
        step()
        processes.maximum(0)

    return run
