"""Each lowering against the operation that it replaces, over the calls that networks make."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from funcnets import models, optim, random, timing, train, tree
from funcnets.bench.case import LEARNING_RATE, Case
from funcnets.bench.steps import BACKENDS
from funcnets.jit import DEFAULT, Lowering, jit
from funcnets.jit.lowerings import layout
from funcnets.precision import POLICIES

aten = torch.ops.aten
# What ATen leaves out where it is this: stride, padding, dilation and ceil_mode.
POOL_DEFAULTS: tuple[Any, ...] = ([], [0, 0], [1, 1], False)


class Lowered(NamedTuple):
    """One lowering on arguments of one shape."""

    network: str
    batch_size: int
    precision: str
    lowering: str
    shapes: str  # of the tensors among the arguments
    calls: int  # a step
    column: str  # how the rewrite was run
    operation_ms: float  # median of the operation that is replaced
    rewrite_ms: float  # median of the rewrite
    ratio: float  # how many times faster the rewrite is


def pool_and_gradient(x: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    """A max pool, told as ATen's is, and a gradient of it; a rule of fusion replaces both."""
    how = (*how, *POOL_DEFAULTS[len(how) - 1 :])
    maxima, where = aten.max_pool2d_with_indices(x, *how)
    return maxima, aten.max_pool2d_with_indices_backward(maxima, x, *how, where)


# Lowerings whose operation isn't replaced alone: what is timed, under which name, and with which.
TOGETHER: dict[Lowering, tuple[str, Callable[..., Any], Sequence[Lowering]]] = {
    layout.POOL_FORWARD: (
        "fusion.max_pool",
        pool_and_gradient,
        (layout.POOL_FORWARD, layout.POOL_BACKWARD),
    )
}


def measure(
    case: Case, precision: str, columns: Sequence[str], *, rounds: int, seconds: float | None = None
) -> list[Lowered]:
    """Time each lowering where its rule applies in a training step of `case`, all in turns."""
    rows = []
    for lowering, arguments, calls in applications(case, precision):
        if lowering is layout.POOL_BACKWARD:
            continue  # it is timed with the pool
        name, replaced, used = TOGETHER.get(
            lowering, (lowering.name, lowering.operation, [lowering])
        )
        leaves, spec = tree.flatten(arguments)
        tensors = [_filled(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        operation = _on_tensors(replaced, leaves, spec)
        functions = {"operation": operation} | {
            column: jit(operation, backend=BACKENDS[column], lowerings=used)
            for column in columns
            if column in BACKENDS
        }
        turns = {name: _called(function, tensors) for name, function in functions.items()}
        for turn in turns.values():
            turn()
        times = timing.medians(timing.interleave(turns, rounds, seconds=seconds))
        shapes = ", ".join("×".join(map(str, tensor.shape)) for tensor in tensors)
        what = (case.network, case.batch_size, precision, name, shapes, calls)
        expected = times.pop("operation")
        rows += [
            Lowered(*what, column, 1e3 * expected, 1e3 * taken, expected / taken)
            for column, taken in times.items()
        ]
    return rows


def applications(
    case: Case, precision: str, lowerings: Sequence[Lowering] = DEFAULT
) -> list[tuple[Lowering, tuple[Any, ...], int]]:
    """Where lowerings apply in a training step: the arguments, as fake tensors, and how often."""
    graph = _graph(case, precision)
    times: Counter[Hashable] = Counter()
    found: dict[Hashable, tuple[Lowering, tuple[Any, ...]]] = {}
    for lowering, arguments in _calls(graph, lowerings):
        key = (lowering.name, str(tree.map(_described, arguments)))
        times[key] += 1
        found[key] = (lowering, arguments)
    return [(*what, times[key]) for key, what in found.items()]


def _graph(case: Case, precision: str) -> fx.GraphModule:
    """A training step as it is without lowerings; its arguments hold no values."""
    net, _ = models.get(case.network)
    optimizer = optim.sgd(LEARNING_RATE)
    x = torch.empty(case.shape, device="meta")
    train_state = train.create(net, optimizer, random.key(0, "meta"), x)
    labels = torch.empty(case.batch_size, dtype=torch.int64, device="meta")
    # Memory that nobody touches costs nothing.
    arguments = tree.map(
        lambda leaf: torch.empty_like(leaf, device=case.device), (train_state, (x, labels))
    )
    step = train.make_train_step(net, optimizer, policy=POLICIES[precision])
    return jit(step, lowerings=None).trace(*arguments).graph


def _calls(
    graph: fx.GraphModule, lowerings: Sequence[Lowering]
) -> Iterator[tuple[Lowering, tuple[Any, ...]]]:
    for node in graph.graph.nodes:
        for lowering in lowerings:
            if node.target is lowering.operation:
                args, kwargs = fx.node.map_arg(
                    (node.args, node.kwargs), lambda argument: argument.meta["val"]
                )
                if lowering.applies(*args, **kwargs):
                    yield lowering, (args, kwargs)
                    break


def _described(leaf: Any) -> Any:
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _filled(fake: Tensor) -> Tensor:
    """A tensor of random numbers with the layout of a fake one."""
    real = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
    return real.uniform_() if real.is_floating_point() else real.zero_()


def _on_tensors(function: Callable[..., Any], leaves: list[Any], spec: Any) -> Callable[..., Any]:
    """`function` as one of the tensors among its arguments alone."""

    def call(*tensors: Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree.unflatten(filled, spec)
        return function(*args, **kwargs)

    return call


def _called(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Callable[[], Any]:
    return lambda: function(*tensors)
