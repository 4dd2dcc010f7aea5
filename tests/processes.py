"""Functions that run in several processes at once, as ranks of a process group over loopback."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from pathlib import Path

# Children are forks of a process that has imported these, so that each begins in a moment.
# The last ones PyTorch imports at the first derivative.
MODULES = ("funcnets.parallel", "funcnets.compiler.pipeline", "processes", "torch._dynamo")
SECONDS = 240


def run(size, function, *arguments, seconds=SECONDS):
    """What `function(axis, *arguments)` returns in each of `size` processes, in the order of ranks.

    The function and what it takes and gives must be picklable.  Its exceptions are raised here.  A
    process that gives nothing for `seconds` is killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    with tempfile.TemporaryDirectory() as directory:
        ends = []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            given = (theirs, directory, rank, size, function, arguments)
            process = context.Process(target=_work, args=given, daemon=True)
            process.start()
            theirs.close()
            ends.append((process, ours))
        try:
            return [_result(rank, *end, seconds) for rank, end in enumerate(ends)]
        finally:
            for process, _ in ends:
                process.kill()
                process.join()


def _result(rank, process, connection, seconds):
    if not connection.poll(seconds):
        raise TimeoutError(f"rank {rank} has given nothing within {seconds} s")
    try:
        failed, result = pickle.loads(connection.recv_bytes())
    except EOFError:
        raise ChildProcessError(f"rank {rank} ended without a result") from None
    if failed:
        raise ChildProcessError(f"rank {rank}:\n{result}")
    return result


def _work(connection, directory, rank, size, function, arguments):
    try:
        outcome = False, _in_group(directory, rank, size, function, arguments)
    except BaseException:
        outcome = True, traceback.format_exc()
    # Not `send`, which passes tensors as memory of this process, and that is about to end.
    connection.send_bytes(pickle.dumps(outcome))


def _in_group(directory, rank, size, function, arguments):
    import torch
    import torch.distributed as dist

    from funcnets.parallel import Axis

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(Path(directory, "store")), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        return function(Axis(size, rank), *arguments)
    finally:
        dist.destroy_process_group()
