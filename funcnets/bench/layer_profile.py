"""Profile of a training step: the time of each layer's forward and backward pass.

What is timed is the compiled graph of the step, operation by operation.  While it is recorded, each
layer notes which operations are its own: those between the beginning and the end of its forward
pass, and in the backward pass those from the gradient of its output on.  What `jit` makes of
operations is theirs too; the time of a loop that it fused of several is divided by their numbers of
elements.
"""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, fx

from funcnets import models, optim, random, train, tree
from funcnets.bench.cases import LEARNING_RATE, Case
from funcnets.bench.table import Unit
from funcnets.compiler import DEFAULT, keep_memory, pipeline
from funcnets.compiler.backends import heap
from funcnets.compiler.backends.select import Backend, compile_graph
from funcnets.compiler.graph.compilation import AfterPass, Compilation
from funcnets.compiler.graph.edit import Replacements
from funcnets.compiler.graph.structure import take_apart
from funcnets.compiler.recorder import recorded_operations
from funcnets.core import Apply, Layer, State, rewrite, wrap
from funcnets.precision import POLICIES

FORWARD, BACKWARD, OTHER = "forward", "backward", "other"
LOSS, OPTIMIZER, UNKNOWN = "loss, casts", "optimizer", "passes"  # in the place of a layer
NETWORK = "network"  # its own operations, which are in no named layer
ALL, WHOLE = "all operations", "step in one call"
WARM_UP = 2  # steps

Origin = tuple[str, str]  # path of the layer, and the pass


class LayerTime(NamedTuple):
    """Median time of a layer's operations in one step, or of what isn't of a layer."""

    network: str
    batch_size: int
    precision: str
    timed: str  # what was timed
    layer: str  # path
    forward: Annotated[float | None, Unit("ms")]
    backward: Annotated[float | None, Unit("ms")]
    total: Annotated[float, Unit("ms")]
    share: Annotated[float, Unit("%")]  # of all operations


def profile_step(case: Case, precision: str, backend: Backend, rounds: int) -> list[LayerTime]:
    """Return the times of the layers in order, of loss and optimizer, and of the whole step.

    The last row is a step in one call: what the operations take beyond it is the cost of timing
    each.  Inductor's kernels can't be told apart: in its place the graph is timed as it is.
    """
    backend = "graph" if backend == "inductor" else backend
    keep_memory()
    compilation, leaves, donated, layers = _compiled(case, precision, backend)
    wait = _wait_for(case.device)
    timer = _Timer(compilation.module, wait)
    whole = compile_graph(compilation.module, backend)
    steps: list[Counter[fx.Node]] = []
    wholes: list[float] = []
    with heap.kept(), torch.no_grad():
        for i in range(rounds + WARM_UP):
            # A step writes to what is donated: each is given the same numbers.
            first, second = (_copied(leaves, donated) for _ in range(2))
            wait()
            timer.seconds.clear()
            timer.run(*first)
            started = time.perf_counter()
            whole(*second)
            wait()
            if i >= WARM_UP:
                steps.append(timer.seconds.copy())
                wholes.append(time.perf_counter() - started)
    of_layer = _by_origin(compilation.graph, steps)
    what = f"{backend}, by operation"
    head = (case.network, case.batch_size, precision, what)
    return _rows(head, layers, of_layer, statistics.median(wholes))


def _wait_for(device: str) -> Callable[[], None]:
    """Return the function that waits for a device: for a CPU there is nothing to wait for."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return wait


def _rows(
    head: tuple[str, int, str, str],
    layers: Sequence[str],
    seconds: Mapping[Origin, float],
    whole: float,
) -> list[LayerTime]:
    """Return a row for each layer, for what is of no layer, and for the whole."""
    every = sum(seconds.values())

    def row(name: str, forward: float | None, backward: float | None, total: float) -> LayerTime:
        passes = [None if each is None else 1e3 * each for each in (forward, backward)]
        return LayerTime(*head, name, passes[0], passes[1], 1e3 * total, 100 * total / every)

    rows = []
    for path in (*layers, LOSS, OPTIMIZER, UNKNOWN):
        forward, backward, other = (seconds.get((path, way)) for way in (FORWARD, BACKWARD, OTHER))
        if total := sum(each or 0.0 for each in (forward, backward, other)):
            rows.append(row(path or NETWORK, forward, backward, total))
    return [*rows, row(ALL, None, None, every), row(WHOLE, None, None, whole)]


class _Marks:
    """Which operations of a graph are a layer's, noted by the layer while they are recorded."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, Origin]] = []

    def restart(self) -> None:
        """Forget all, as tracing begins, or begins anew."""
        self._begun = []
        self.begin(OPTIMIZER, OTHER)

    @property
    def layers(self) -> list[str]:
        """Paths of the layers, in the order of the forward pass."""
        return list(dict.fromkeys(path for _, (path, way) in self._begun if way == FORWARD))

    def begin(self, path: str, way: str) -> None:
        """Note that operations from now on are of this origin."""
        self._begun.append((recorded_operations(), (path, way)))

    def around(self, path: str | None, layer: Layer) -> Layer:
        """Return the layer, which notes when its passes begin and end."""
        if path is None:
            return layer

        def with_marks(inner: Apply) -> Apply:
            def apply(*args: Any, **kwargs: Any) -> tuple[Tensor, State]:
                before = self._begun[-1][1]
                self.begin(path, FORWARD)
                y, state = inner(*args, **kwargs)
                self.begin(*before)
                if not layer.children and y.requires_grad:
                    y.register_hook(lambda gradient: self.begin(path, BACKWARD))
                return y, state

            return apply

        return wrap(layer, with_marks)

    def label(self, graph: fx.Graph) -> None:
        """Write the origin of each node of the recorded graph to its `meta`."""
        nodes = list(graph.nodes)
        ends = [*(position for position, _ in self._begun[1:]), len(nodes)]
        for (start, origin), end in zip(self._begun, ends, strict=True):
            for node in nodes[start:end]:
                node.meta["origin"] = origin


def _compiled(
    case: Case, precision: str, backend: Backend
) -> tuple[Compilation, list[Tensor], Sequence[int], list[str]]:
    """Return the finished graph of a step, its arguments, which are donated, and its layers."""
    marks = _Marks()
    net, _ = models.get(case.network)
    optimizer, batch = optim.sgd(LEARNING_RATE), case.batch()
    train_state = train.create(net, optimizer, random.key(0, case.device), batch[0])

    def gradient(*args: Any, **kwargs: Any) -> Any:
        marks.begin(LOSS, OTHER)
        found = train.batch_gradient(*args, **kwargs)
        marks.begin(OPTIMIZER, OTHER)
        return found

    step = train.make_train_step(
        rewrite(net, marks.around), optimizer, policy=POLICIES[precision], gradient=gradient
    )
    leaves, structure = take_apart((train_state, batch))

    def observe(compilation: Compilation) -> AfterPass | None:
        marks.label(compilation.graph)
        compilation.on_rewrite = _inherit
        return None

    def function(*values: Tensor) -> Any:
        marks.restart()
        return step(*structure.fill(values))

    compilation = pipeline.trace(function, leaves, DEFAULT, observe=observe)
    donated = range(len(tree.leaves(train_state)))
    pipeline.finish(compilation, backend, donated)
    return compilation, list(leaves), donated, marks.layers


def _inherit(name: str, replacements: Replacements) -> None:
    """Give the nodes of a rewrite the origin of what they replace."""
    for old, new in replacements.items():
        begun = [new]
        while begun:
            node = begun.pop()
            if node.op == "call_function" and "origin" not in node.meta:
                node.meta["origin"] = old.meta.get("origin", (UNKNOWN, OTHER))
                begun += node.all_input_nodes


class _Timer(fx.Interpreter):
    """Interpreter of a graph that adds up the seconds of each node's call."""

    def __init__(self, module: fx.GraphModule, wait: Callable[[], None]) -> None:
        super().__init__(module)
        self.seconds: Counter[fx.Node] = Counter()
        self._wait = wait

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and note it for its call."""
        self._node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation, timed."""
        return self._timed(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a compiled loop, timed."""
        return self._timed(self.fetch_attr(target), args, kwargs)

    def _timed(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        self._wait()
        self.seconds[self._node] += time.perf_counter() - started  # type: ignore[assignment]
        return result


def _copied(leaves: Sequence[Tensor], donated: Sequence[int]) -> list[Tensor]:
    return [leaf.clone() if i in donated else leaf for i, leaf in enumerate(leaves)]


def _by_origin(graph: fx.Graph, steps: Sequence[Mapping[fx.Node, float]]) -> dict[Origin, float]:
    """Return the sum of the nodes' median seconds by origin, in the order of the graph."""
    found: dict[Origin, float] = defaultdict(float)
    for node in graph.nodes:
        if node in steps[0]:
            seconds = statistics.median(step[node] for step in steps)
            for origin, share in _shares(node):
                found[origin] += share * seconds
    return found


def _shares(node: fx.Node) -> Iterator[tuple[Origin, float]]:
    """Yield the origins of a node, and the part of its time that is theirs."""
    fused: Counter[Origin] = node.meta.get("origins", Counter())
    if not fused:
        known = [each for each in (node, *node.all_input_nodes) if "origin" in each.meta]
        yield known[0].meta["origin"] if known else (UNKNOWN, OTHER), 1.0
    for origin, elements in fused.items():
        yield origin, elements / fused.total()
