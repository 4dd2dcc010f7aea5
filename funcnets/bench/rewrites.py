"""Subgraphs of a training step that `jit` rewrites, before and after, as graphs of their own."""

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from funcnets import models, optim, random, train, tree
from funcnets.bench.cases import LEARNING_RATE, Case
from funcnets.compiler import DEFAULT, Lowering
from funcnets.compiler.backends.select import Backend
from funcnets.compiler.graph.compilation import Compilation, Pass
from funcnets.compiler.graph.edit import Replacements
from funcnets.compiler.graph.structure import take_apart
from funcnets.compiler.loops.grouping import flatten_vectors, repeat_conversions
from funcnets.compiler.loops.lower import group_regions
from funcnets.compiler.lowerings import Watch, unwatched
from funcnets.compiler.passes.fuse import fuse_scales
from funcnets.compiler.passes.simplify import remove_dead_code
from funcnets.compiler.pipeline import CLEANING, FUSION, run_passes
from funcnets.compiler.trace import record_function
from funcnets.precision import POLICIES


class Rewrite(NamedTuple):
    """A subgraph before and after a rewrite.

    Both take the same tensors, each in the memory format that it has in the step.
    """

    name: str  # of the lowering or the rule of fusion, or `loops`
    before: fx.GraphModule
    after: fx.GraphModule
    applies: Callable[[Backend], bool] = lambda backend: True  # True if the back end does it

    @property
    def key(self) -> Hashable:
        """The same for rewrites that do the same with tensors of the same layouts."""
        given = [_layouts(arguments(graph)) for graph in (self.before, self.after)]
        return self.name, str(given), self.before.code


def arguments(graph: fx.GraphModule) -> list[Tensor]:
    """Return the arguments of a graph, as fake tensors."""
    return [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]


def _layouts(values: Any) -> Any:
    def described(leaf: Any) -> Any:
        return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf

    return tree.map(described, values)


def find_rewrites(
    case: Case, precision: str, lowerings: Sequence[Lowering] = DEFAULT
) -> list[tuple[Rewrite, int]]:
    """Return the rewrites in a training step, with their numbers; the step isn't run."""
    found: dict[Hashable, Rewrite] = {}
    calls: Counter[Hashable] = Counter()
    for rewrite in _each_rewrite(case, precision, lowerings):
        calls[rewrite.key] += 1
        found.setdefault(rewrite.key, rewrite)
    return [(rewrite, calls[key]) for key, rewrite in found.items()]


def _each_rewrite(case: Case, precision: str, lowerings: Sequence[Lowering]) -> Iterator[Rewrite]:
    used: list[tuple[Lowering, Any]] = []
    step = _step(case, precision, lowerings, lambda *call: used.append((call[0], call[1:])))
    yield from _lowering_rewrites(used, lowerings)
    yield from _fusion_rewrites(step, FUSION)
    yield from _loop_rewrites(compilation_of(copy.deepcopy(step.module)))
    for each in _fusion_rewrites(step, (fuse_scales,)):
        yield each._replace(applies=lambda backend: backend == "graph")


def compilation_of(graph: fx.GraphModule) -> Compilation:
    """Return a graph without a function of its own, for passes to edit."""
    return Compilation(graph, take_apart([])[1])


def _recorded(
    function: Callable[..., Any],
    leaves: Sequence[Tensor],
    lowerings: Sequence[Lowering],
    watch: Watch = unwatched,
) -> Compilation:
    """Record a function as a graph with these lowerings and no other rewrites."""
    compilation = record_function(function, leaves, lowerings, watch)
    run_passes(compilation, CLEANING)
    return compilation


def _step(case: Case, precision: str, lowerings: Sequence[Lowering], watch: Watch) -> Compilation:
    """Record a training step as a graph with these lowerings and no other rewrites."""
    net, _ = models.get(case.network)
    optimizer = optim.sgd(LEARNING_RATE)
    x = torch.empty(case.shape, device="meta")
    train_state = train.create(net, optimizer, random.key(0, "meta"), x)
    labels = torch.empty(case.batch_size, dtype=torch.int64, device="meta")
    step = train.make_train_step(net, optimizer, policy=POLICIES[precision])
    leaves, structure = take_apart((train_state, (x, labels)))
    # Memory that is never written costs nothing.
    leaves = [torch.empty_like(leaf, device=case.device) for leaf in leaves]
    return _recorded(lambda *values: step(*structure.fill(values)), leaves, lowerings, watch)


def _lowering_rewrites(
    used: Sequence[tuple[Lowering, Any]], lowerings: Sequence[Lowering]
) -> Iterator[Rewrite]:
    """Yield operations on contiguous tensors, and their lowerings in the layouts of the step."""
    known: dict[str, Rewrite] = {}
    for lowering, call in used:
        key = lowering.name + str(_layouts(call))
        if key not in known:
            leaves, _ = take_apart(call)
            others = lowerings[lowerings.index(lowering) :]  # for the operations that it calls
            operation = _on_tensors(lowering.operation, call)
            before = _recorded(operation, [_contiguous(leaf) for leaf in leaves], ())
            after = _recorded(operation, [empty(leaf) for leaf in leaves], others)
            known[key] = Rewrite(lowering.name, before.module, after.module)
        yield known[key]


def _on_tensors(operation: Callable[..., Any], call: Any) -> Callable[..., Any]:
    """Return the operation as a function of the tensors among the arguments of a call."""
    leaves, structure = tree.flatten(call)

    def function(*tensors: Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree.unflatten(filled, structure)
        return operation(*args, **kwargs)

    return function


def _contiguous(fake: Tensor) -> Tensor:
    """Return memory for a fake tensor; feature maps are contiguous, in NCHW."""
    if fake.ndim != 4:
        return empty(fake)
    return torch.empty(fake.shape, dtype=fake.dtype, device=fake.device)


def _fusion_rewrites(step: Compilation, passes: Sequence[Pass]) -> list[Rewrite]:
    """Run passes of fusion on a step, and return their rewrites."""
    log = _RewriteLog(step.graph)
    step.on_rewrite = log
    run_passes(step, passes)
    return log.rewrites


def _loop_rewrites(step: Compilation) -> Iterator[Rewrite]:
    """Yield the groups of element-wise operations that become loops in the native back end."""
    run_passes(step, (repeat_conversions, flatten_vectors, remove_dead_code))
    for group in group_regions(step):
        operands = dict.fromkeys(node for region in group for node in region.operands)
        loop = _subgraph([node for region in group for node in region.results], list(operands))
        yield Rewrite("loops", loop, loop, lambda backend: backend != "graph")


class _RewriteLog:
    """Callback of passes that records the rewrites of a graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph, self.rewrites = graph, list[Rewrite]()
        self._known = set(graph.nodes)

    def __call__(self, name: str, replacements: Replacements) -> None:
        old, new = list(replacements), list(replacements.values())
        inputs = list(dict.fromkeys(self._inputs(new)))
        self.rewrites.append(Rewrite(name, _subgraph(old, inputs), _subgraph(new, inputs)))
        self._known = set(self.graph.nodes)

    def _inputs(self, nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
        """Yield the nodes from before the rewrite that new nodes are computed from."""
        for node in nodes:
            if node in self._known:
                yield node
            else:
                yield from self._inputs(node.all_input_nodes)


def _subgraph(outputs: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> fx.GraphModule:
    """Return the graph that computes `outputs` from `inputs`."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), copied)
            # Without the old names, so that equal subgraphs have the same code.
            copies[node] = graph.create_node(node.op, node.target, args, kwargs)
            copies[node].meta["val"] = node.meta["val"]
        return copies[node]

    for i, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"argument{i}")
        copies[node].meta["val"] = node.meta["val"]
    graph.output([copied(node) for node in outputs])
    captured: Any = outputs[0].graph.owning_module
    return fx.GraphModule(captured, graph)


def empty(fake: Tensor) -> Tensor:
    """Return memory for a tensor with the shape, strides and dtype of a fake tensor."""
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
