"""The processes that torchrun started: how they join, agree, and tell which of them failed."""

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from funcnets.parallel.axis import Axis

Result = TypeVar("Result")

# A process that loses another one waits as long for the others to say why they end.
SECONDS_FOR_LAST_WORDS = 5.0
# A server that takes longer to answer than rank 0 does is another one.
SECONDS_FOR_ANSWER = 10.0


ONE_PROCESS = Axis()


class JoinError(OSError):
    """The processes can't form a group; one line that says why, and what to do.

    Attributes:
        is_repeated: True if rank 0 has this error as well.
    """

    def __init__(self, message: str, *, is_repeated: bool) -> None:
        super().__init__(message)
        self.is_repeated = is_repeated


class PeerError(RuntimeError):
    """Another process failed, has gone or hangs.

    Attributes:
        exit_code: the exit code of the process that failed, or 1.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them; `Processes()` is one alone.

    Attributes:
        axis: what a training step is given.
        local_rank: number of this process among those of its machine.
        timeout: seconds after which a process that does not answer is given up.
        store: keys and values that all processes can read; None for a process alone.

    >>> from funcnets.parallel import Processes
    >>> Processes().gather("alone")
    ['alone']
    """

    axis: Axis = ONE_PROCESS
    local_rank: int = 0
    timeout: float = 600.0
    store: Any = None

    @property
    def is_first(self) -> bool:
        """True in rank 0, the process that prints and writes files."""
        return self.axis.rank == 0

    def gather(self, value: Result) -> list[Result]:
        """Return the `value` of each process, anything that can be pickled, in order of ranks."""
        if self.axis.size == 1:
            return [value]
        values: list[Any] = [None] * self.axis.size
        dist.all_gather_object(values, value)
        return values

    def maximum(self, value: int) -> int:
        """Return the largest of the processes' numbers; quicker than `gather`."""
        if self.axis.size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def together(self, function: Callable[[], Result]) -> Result:
        """Return `function()`, which must not communicate.

        If it raises an exception in some processes, all raise that of the lowest rank.
        """
        result: Any = None
        error: Exception | None = None
        try:
            result = function()
        except Exception as raised:
            error = raised
        for rank, found in enumerate(self.gather(_picklable(error))):
            if found is not None:
                raise error if error is not None and rank == self.axis.rank else found
        return cast(Result, result)

    def explain(self, error: Exception, code: int) -> tuple[Exception, bool]:
        """Return the error with which this process ends, and whether it is the one to print it.

        Every process that ends by an error has to call this once, with its exit code.  An error
        that was only the loss of another process becomes a PeerError that names it.
        """
        rank, size = self.axis.rank, self.axis.size
        if size == 1:
            return error, True
        if not _is_loss(error):
            self._write("failed", (_line(error), code))
            return error, rank == 0
        self._write("lost", None)
        failed, lost = self._last_words()
        is_speaker = 0 not in failed and rank == min(lost | {rank})
        if failed:
            first = min(failed)
            text, code = failed[first]
            return PeerError(f"rank {first}: {text}", code), is_speaker
        missing = [str(other) for other in range(size) if other not in lost and other != rank]
        if not missing:
            return PeerError(f"the processes lost each other: {_line(error)}"), is_speaker
        what = "has gone: it was killed, or its machine stopped"
        if "imed out" in _line(error):
            what = f"hangs: it has not answered for {self.timeout:g} s (--timeout)"
        return PeerError(f"rank {', '.join(missing)} {what}"), is_speaker

    def _write(self, kind: str, value: Any) -> None:
        with suppress(RuntimeError):  # the store ends with rank 0, unless torchrun holds it
            self.store.set(f"funcnets/{kind}/{self.axis.rank}", pickle.dumps(value))

    def _last_words(self) -> tuple[dict[int, Any], set[int]]:
        """Return what the ranks say that failed, and the ranks that lost another one."""
        failed: dict[int, Any] = {}
        lost: set[int] = set()
        ends = time.monotonic() + SECONDS_FOR_LAST_WORDS
        with suppress(RuntimeError):
            while time.monotonic() < ends and len(failed | dict.fromkeys(lost)) < self.axis.size:
                for rank in range(self.axis.size):
                    if self.store.check([f"funcnets/failed/{rank}"]):
                        failed[rank] = pickle.loads(self.store.get(f"funcnets/failed/{rank}"))
                    elif self.store.check([f"funcnets/lost/{rank}"]):
                        lost.add(rank)
                time.sleep(0.05)
        return failed, lost


@contextmanager
def join(device: str = "cpu", *, timeout: float = 600.0) -> Iterator[Processes]:
    """Join the processes that torchrun started, which it tells by environment variables.

    Without these, or for one process, nothing is done.  Processes speak by gloo, and about tensors
    on GPUs by NCCL; then each takes the GPU of its local rank as the current one.  The group is
    PyTorch's default one, for the time of the context.

    Args:
        device: "cpu" or "cuda".
        timeout: seconds after which a process that does not answer is given up.

    Raises JoinError if the processes can't find each other, a port is in use, PyTorch has no such
    backend, or the machine has fewer GPUs than processes.
    """
    size = world_size()
    if size == 1:
        yield Processes(timeout=timeout)
        return
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK", 0)
    backend = _backend(device, local_rank)
    store = _store(rank, timeout)
    limit = timedelta(seconds=timeout)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except RuntimeError as error:
        raise JoinError(f"rank {rank} can't join: {_line(error)}", is_repeated=False) from None
    group: Any = dist.group.WORLD
    try:
        yield Processes(Axis(size, rank, group.group_name), local_rank, timeout, store)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that torchrun started, 1 without it."""
    return _number("WORLD_SIZE", 1)


def _refusal(message: str) -> JoinError:
    """Return the error that all processes have."""
    rank = os.environ.get("RANK", "")
    return JoinError(message, is_repeated=rank.isdecimal() and int(rank) > 0)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise _refusal(f"the environment variable {name} is {text!r}: start by torchrun")
    return int(text)


def _backend(device: str, local_rank: int) -> str:
    """Return the backend for tensors on `device`, and let it be this process's GPU."""
    if not dist.is_available() or not dist.is_gloo_available():
        raise _refusal("this PyTorch has no gloo, by which processes speak: install another build")
    if not device.startswith("cuda"):
        return "gloo"
    if not dist.is_nccl_available():
        raise _refusal("this PyTorch has no NCCL, which several GPUs need: add --device cpu")
    processes, gpus = _number("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count()
    if not gpus:
        raise _refusal("there is no GPU that PyTorch can use: give --device cpu")
    if max(processes, local_rank + 1) > gpus:
        raise _refusal(f"{processes} processes for {gpus} GPUs: start one for each GPU")
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"


def _store(rank: int, timeout: float) -> Any:
    """Return the store at the address of rank 0, which holds it unless torchrun does."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise _refusal(f"the environment variable {name} is not set: start by torchrun")
    host, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT")
    if rank:
        _wait_for_listener(host, port, timeout)
    try:
        limit = SECONDS_FOR_ANSWER if rank else timeout
        rendezvous: Any = dist.rendezvous  # type: ignore[attr-defined]
        store = _within(limit, lambda: next(iter(rendezvous("env://")))[0])
    except (RuntimeError, TimeoutError) as error:
        raise _join_error(error, rank, f"{host}:{port}", timeout) from None
    # Torchrun may give processes that it starts again the store with what the first ones wrote.
    prefix = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _join_error(error: Exception, rank: int, address: str, timeout: float) -> JoinError:
    is_late = isinstance(error, TimeoutError)
    if is_late and rank == 0:
        message = f"a process has not joined rank 0 at {address} for {timeout:g} s (--timeout)"
        return JoinError(message, is_repeated=False)
    if is_late or "EADDRINUSE" in str(error):
        return _refusal(
            f"another program listens at {address}: choose another port, as by "
            "torchrun --master-port PORT"
        )
    message = f"rank {rank} can't join at {address}: {_line(error)}"
    return JoinError(message, is_repeated=False)


def _within(seconds: float, function: Callable[[], Result]) -> Result:
    """Return `function()`, run in a thread.  Raises TimeoutError if it takes longer."""
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(seconds)


def _wait_for_listener(host: str, port: int, timeout: float) -> None:
    """Wait until rank 0 listens.  Raises JoinError after `timeout` seconds."""
    ends = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=SECONDS_FOR_ANSWER).close()
        except OSError as error:
            if time.monotonic() > ends:
                message = f"rank 0 does not listen at {host}:{port} ({error.strerror or error})"
                raise JoinError(message, is_repeated=False) from None
            time.sleep(0.1)
        else:
            return


def _is_loss(error: BaseException | None) -> bool:
    """True for an error of a collective, which tells that another process does not take part."""
    if error is None:
        return False
    text = str(error)
    is_own = isinstance(error, dist.DistError) or "gloo/" in text or "NCCL" in text
    return is_own or _is_loss(error.__cause__)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _picklable(error: Exception | None) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        is_refusal = isinstance(error, ValueError | OSError)
        return ValueError(str(error)) if is_refusal else RuntimeError(str(error))
    return error
