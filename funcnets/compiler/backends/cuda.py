"""Precision of products on a GPU, and steps replayed as CUDA graphs.

Unverified: nothing here has run on a GPU yet; tests put a CPU in its place.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets.compiler.backends.select import Executable

Replay = Callable[[], object]


def prepared(
    run: Executable, leaves: Sequence[Tensor], donated: Sequence[int], *, tf32: bool
) -> Executable:
    """Return `run` as it is called for `leaves`: precise, and replayed, if they are on a GPU."""
    on_gpu = list(map(is_on_gpu, leaves))
    if not any(on_gpu):
        return run
    run = with_products(run, tf32=tf32)
    # What is elsewhere would be read when the graph is captured, and never again.
    return Replayed(run, donated, capture) if donated and all(on_gpu) else run


def is_on_gpu(tensor: Tensor) -> bool:
    """True if the tensor is on a GPU."""
    return tensor.is_cuda


@contextlib.contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """Context in which GPUs may, or may not, round factors of float32 products to TF32's 10 bits.

    PyTorch by itself does so for convolutions and not for matrix products.
    """
    backends: Any = torch.backends
    places = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def with_products(run: Executable, *, tf32: bool) -> Executable:
    """Return `run` with products of that precision, whatever is set for the process."""

    def precise(*leaves: Tensor) -> Sequence[Tensor]:
        with products(tf32=tf32):
            return run(*leaves)

    return precise


def capture(function: Callable[[], Sequence[Tensor]]) -> tuple[Replay, Sequence[Tensor]]:
    """Return the replay of a CUDA graph of `function`, and its results after each replay.

    The capture computes nothing.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results


class _Captured(NamedTuple):
    addresses: list[int]  # of the donated leaves
    leaves: list[Tensor]  # that it reads and updates
    replay: Replay
    results: Sequence[Tensor]


class Replayed:
    """An executable that is captured when its donated arguments come at the same addresses again.

    As it updates them in place, they do in a training's loop, from the second step on: then all
    kernels of a step are started at once.  The other arguments are copied to where the graph reads
    them, and results from where it writes them.  A call whose donated arguments are elsewhere runs
    as it is, and the second one in a row is captured in place of the last.

    A captured graph keeps the memory that it works in, and the arguments that it was made for.
    """

    def __init__(
        self,
        run: Executable,
        donated: Sequence[int],
        capture: Callable[[Callable[[], Sequence[Tensor]]], tuple[Replay, Sequence[Tensor]]],
    ) -> None:
        self.run, self.donated, self.capture = run, donated, capture
        self._last: list[int] = []
        self._captured: _Captured | None = None
        self._can_capture = True

    def __call__(self, *leaves: Tensor) -> Sequence[Tensor]:
        """Return the results for these arguments, by a captured graph if there is one."""
        addresses = [leaves[position].data_ptr() for position in self.donated]
        again, self._last = addresses == self._last, addresses
        is_elsewhere = self._captured is None or self._captured.addresses != addresses
        if is_elsewhere and again and self._can_capture:
            self._captured = None  # so that its memory is free
            self._captured = self._capture(leaves, addresses)
        captured = self._captured
        if captured is None or captured.addresses != addresses:
            return self.run(*leaves)
        for given, read in zip(leaves, captured.leaves, strict=True):
            if given.data_ptr() != read.data_ptr():
                read.copy_(given)
        captured.replay()
        return [result.clone() for result in captured.results]

    def _capture(self, leaves: Sequence[Tensor], addresses: list[int]) -> _Captured | None:
        own = [
            leaf if position in self.donated else leaf.clone()
            for position, leaf in enumerate(leaves)
        ]
        if [leaf.stride() for leaf in own] != [leaf.stride() for leaf in leaves]:
            self._can_capture = False  # a copy without gaps is not what it was compiled for
            return None
        try:
            return _Captured(addresses, own, *self.capture(lambda: self.run(*own)))
        except (RuntimeError, AssertionError) as error:  # inductor asserts shapes and strides
            warnings.warn(f"jit: goes on without a CUDA graph: {error}", stacklevel=2)
            self._can_capture = False
            return None
