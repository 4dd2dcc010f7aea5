"""Precision of products on a GPU, and steps replayed as CUDA graphs.

Tried on an H200 with torch 2.11; the tests that run without a GPU put a CPU in its place.
"""

import contextlib
import operator
import re
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets.compiler.backends.select import Executable

MOST_GRAPHS = 16  # of one executable
COLLECTIVES = "_c10d_functional"  # namespace of the operations that communicate
OPERATION = re.compile(r"\btorch\.ops\.([\w.]+)\(")  # a call in the code of a graph
Replay = Callable[[], object]


def prepared(
    run: Executable,
    leaves: Sequence[Tensor],
    donated: Sequence[int],
    *,
    tf32: bool,
    deterministic: bool = False,
    can_replay: bool = True,
) -> Executable:
    """Return `run` as it is called for `leaves`: precise, and replayed, if they are on a GPU.

    `can_replay`: as the function of this name says of its graph.
    """
    on_gpu = list(map(is_on_gpu, leaves))
    if not any(on_gpu):
        return run
    run = with_products(run, tf32=tf32, deterministic=deterministic)
    devices = {leaf.device for leaf in leaves}
    if not can_replay:
        return run
    # What is elsewhere would be read when the graph is captured, and never again.
    return Replayed(run, donated, Capturer(devices.pop())) if len(devices) == 1 else run


def can_replay(code: str) -> bool:
    """Return False for the code of a graph that must not be captured as a CUDA graph.

    That is one with collectives, which PyTorch does not watch there: where another process hangs,
    they would wait for ever.  And one with an operation that says of itself that it can't be
    captured, by `torch.Tag.cudagraph_unsafe`.
    """
    operations = map(operator.attrgetter, set(OPERATION.findall(code)))
    tags = (find(torch.ops).tags for find in operations)
    return COLLECTIVES not in code and not any(torch.Tag.cudagraph_unsafe in each for each in tags)


def is_on_gpu(tensor: Tensor) -> bool:
    """True if the tensor is on a GPU."""
    return tensor.is_cuda


@contextlib.contextmanager
def products(*, tf32: bool, deterministic: bool = False) -> Iterator[None]:
    """Context in which GPUs may, or may not, round factors of float32 products to TF32's 10 bits.

    PyTorch by itself does so for convolutions and not for matrix products.  If `deterministic`,
    cuDNN takes algorithms alone that give the same bits each time, and chooses none by timing.
    """
    backends: Any = torch.backends
    cudnn = backends.cudnn
    places = (cudnn.conv, cudnn.rnn, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    choice = cudnn.deterministic, cudnn.benchmark
    if deterministic:
        cudnn.deterministic, cudnn.benchmark = True, False
    for place in places:
        place.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
        cudnn.deterministic, cudnn.benchmark = choice


def with_products(run: Executable, *, tf32: bool, deterministic: bool = False) -> Executable:
    """Return `run` with products as in `products`, whatever is set for the process."""

    def precise(*leaves: Tensor) -> Sequence[Tensor]:
        with products(tf32=tf32, deterministic=deterministic):
            return run(*leaves)

    return precise


Capture = Callable[[Callable[[], Sequence[Tensor]]], tuple[Replay, Sequence[Tensor]]]


class Capturer:
    """Captures CUDA graphs that share one pool of memory, as no two of them run at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None
        self._stream: Any = None  # PyTorch's own is on the device of the process's first capture

    def __call__(self, function: Callable[[], Sequence[Tensor]]) -> tuple[Replay, Sequence[Tensor]]:
        """Return the replay of a CUDA graph of `function`, and its results after each replay.

        The capture computes nothing.  If it fails, the stream is what it was.
        """
        with torch.cuda.device(self.device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._stream = self._stream or torch.cuda.Stream()
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            how: Any = {"stream": self._stream, "capture_error_mode": "thread_local"}
            try:
                # Other threads may go on to allocate memory.
                with torch.cuda.graph(graph, self._pool, **how):
                    results = function()
            except BaseException:
                torch.cuda.set_stream(stream)  # the context ends the capture first, which may raise
                raise
        return graph.replay, results


class _Captured(NamedTuple):
    copied: list[tuple[int, Tensor]]  # positions of arguments, and from where the graph reads them
    replay: Replay
    results: Sequence[Tensor]


class Replayed:
    """An executable that is captured when its arguments come at the same addresses again.

    A graph reads and updates the donated arguments in place; if none is donated, the graph reads
    in place those that were the same tensors in the first two calls, such as the parameters in an
    evaluation.  The other arguments are copied to where the graph reads them, and results from
    where it writes them.  A call runs as it is until its addresses come for the second time; then
    all kernels of a step are started at once.

    There is a graph for each set of addresses, up to `MOST_GRAPHS`, such as those of the members
    of an ensemble that take turns; then the one that was not used for longest makes room.

    Several threads may call it, on one stream: graphs have one memory for their arguments.
    """

    def __init__(self, run: Executable, donated: Sequence[int], capture: Capture) -> None:
        self.run, self.capture = run, capture
        self._fixed: Sequence[int] | None = donated or None  # positions of what is read in place
        self._first: list[weakref.ref[Tensor]] | None = None  # arguments of the first call
        self._graphs: OrderedDict[tuple[int, ...], _Captured | None] = OrderedDict()
        self._can_capture = True
        self._lock = threading.Lock()

    def __call__(self, *leaves: Tensor) -> Sequence[Tensor]:
        """Return the results for these arguments, by a captured graph if there is one."""
        # Copies must have no autograd history, which would grow from call to call.
        with self._lock, torch.no_grad():
            return self._call(leaves)

    def _call(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        fixed = self._fixed or self._find_fixed(leaves)
        if not fixed or not self._can_capture:
            return self.run(*leaves)
        addresses = tuple(leaves[position].data_ptr() for position in fixed)
        is_seen = addresses in self._graphs
        captured = self._graphs.pop(addresses, None)
        if is_seen and captured is None:
            captured = self._capture(leaves, fixed)
        self._graphs[addresses] = captured  # as the newest
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        if captured is None:
            return self.run(*leaves)
        for position, read in captured.copied:
            read.copy_(leaves[position])
        captured.replay()
        return [result.clone() for result in captured.results]

    def _find_fixed(self, leaves: Sequence[Tensor]) -> Sequence[int]:
        """Return the positions of the arguments that the first call had too, from the second on."""
        if self._fixed is None and self._first is None:
            self._first = [weakref.ref(leaf) for leaf in leaves]
            return ()
        if self._fixed is None and self._first is not None:
            pairs = enumerate(zip(self._first, leaves, strict=True))
            self._fixed = [i for i, (first, leaf) in pairs if first() is leaf]
        return self._fixed or ()

    def _capture(self, leaves: Sequence[Tensor], fixed: Sequence[int]) -> _Captured | None:
        # In inference mode they would be tensors that no later call outside it may write to.
        with torch.inference_mode(False), torch.no_grad():
            copied = [
                (position, leaf.clone())
                for position, leaf in enumerate(leaves)
                if position not in fixed
            ]
        if any(leaves[position].stride() != copy.stride() for position, copy in copied):
            self._can_capture = False  # a copy without gaps is not what it was compiled for
            return None
        read = dict(enumerate(leaves)) | dict(copied)
        try:
            return _Captured(copied, *self.capture(lambda: self.run(*read.values())))
        except (RuntimeError, AssertionError) as error:  # inductor asserts shapes and strides
            warnings.warn(f"jit: goes on without a CUDA graph: {error}", stacklevel=2)
            self._can_capture = False
            return None
