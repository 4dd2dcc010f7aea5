"""What `jit` makes of a training step: each stretch of its graph that it writes anew, both ways."""

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
from funcnets.compiler.loops.lower import groups
from funcnets.compiler.lowerings import Watch, unwatched
from funcnets.compiler.passes.fuse import fuse_scales
from funcnets.compiler.passes.simplify import remove_dead_code
from funcnets.compiler.pipeline import CLEANING, FUSION, run_passes
from funcnets.compiler.trace import record_function
from funcnets.precision import POLICIES


class Rewrite(NamedTuple):
    """A stretch of a graph as it was, and as it is.

    Both take the same tensors, each in the memory format in which it comes to it.
    """

    name: str  # of the lowering, the rule, or what else has written it anew
    before: fx.GraphModule
    after: fx.GraphModule
    applies: Callable[[Backend], bool] = lambda backend: True  # whether the back end does so

    @property
    def key(self) -> Hashable:
        """Equal for those that do the same with tensors of the same shapes."""
        given = [_layouts(arguments(graph)) for graph in (self.before, self.after)]
        return self.name, str(given), self.before.code


def arguments(graph: fx.GraphModule) -> list[Tensor]:
    """What a graph takes, as fake tensors."""
    return [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]


def _layouts(values: Any) -> Any:
    def described(leaf: Any) -> Any:
        return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf

    return tree.map(described, values)


def rewrites(
    case: Case, precision: str, lowerings: Sequence[Lowering] = DEFAULT
) -> list[tuple[Rewrite, int]]:
    """What is written anew in a training step, and how often; nothing is computed for it."""
    found: dict[Hashable, Rewrite] = {}
    times: Counter[Hashable] = Counter()
    for rewrite in _all(case, precision, lowerings):
        times[rewrite.key] += 1
        found.setdefault(rewrite.key, rewrite)
    return [(rewrite, times[key]) for key, rewrite in found.items()]


def _all(case: Case, precision: str, lowerings: Sequence[Lowering]) -> Iterator[Rewrite]:
    used: list[tuple[Lowering, Any]] = []
    step = _step(case, precision, lowerings, lambda *call: used.append((call[0], call[1:])))
    yield from _lowered(used, lowerings)
    yield from _fused(step, FUSION)
    yield from _looped(compilation_of(copy.deepcopy(step.module)))
    for each in _fused(step, (fuse_scales,)):
        yield each._replace(applies=lambda backend: backend == "graph")


def compilation_of(graph: fx.GraphModule) -> Compilation:
    """A graph that comes from no function, for passes to edit."""
    return Compilation(graph, take_apart([])[1])


def _recorded(
    function: Callable[..., Any],
    leaves: Sequence[Tensor],
    lowerings: Sequence[Lowering],
    watch: Watch = unwatched,
) -> Compilation:
    """A function as a graph with these lowerings, and as it stands otherwise."""
    compilation = record_function(function, leaves, lowerings, watch)
    run_passes(compilation, CLEANING)
    return compilation


def _step(case: Case, precision: str, lowerings: Sequence[Lowering], watch: Watch) -> Compilation:
    """A training step with these lowerings, and as it stands otherwise."""
    net, _ = models.get(case.network)
    optimizer = optim.sgd(LEARNING_RATE)
    x = torch.empty(case.shape, device="meta")
    train_state = train.create(net, optimizer, random.key(0, "meta"), x)
    labels = torch.empty(case.batch_size, dtype=torch.int64, device="meta")
    step = train.make_train_step(net, optimizer, policy=POLICIES[precision])
    leaves, structure = take_apart((train_state, (x, labels)))
    # Memory that nobody touches costs nothing.
    leaves = [torch.empty_like(leaf, device=case.device) for leaf in leaves]
    return _recorded(lambda *values: step(*structure.fill(values)), leaves, lowerings, watch)


def _lowered(
    used: Sequence[tuple[Lowering, Any]], lowerings: Sequence[Lowering]
) -> Iterator[Rewrite]:
    """Operations on plain tensors, and what lowerings make of them as they come in a step."""
    known: dict[str, Rewrite] = {}
    for lowering, call in used:
        key = lowering.name + str(_layouts(call))
        if key not in known:
            leaves, _ = take_apart(call)
            others = lowerings[lowerings.index(lowering) :]  # what it calls is left to them
            operation = _on_tensors(lowering.operation, call)
            before = _recorded(operation, [_plain(leaf) for leaf in leaves], ())
            after = _recorded(operation, [empty(leaf) for leaf in leaves], others)
            known[key] = Rewrite(lowering.name, before.module, after.module)
        yield known[key]


def _on_tensors(operation: Callable[..., Any], call: Any) -> Callable[..., Any]:
    """The operation as a function of the tensors among the arguments of a call alone."""
    leaves, structure = tree.flatten(call)

    def function(*tensors: Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree.unflatten(filled, structure)
        return operation(*args, **kwargs)

    return function


def _plain(fake: Tensor) -> Tensor:
    """Memory for a fake tensor; for a map in PyTorch's plain format."""
    if fake.ndim != 4:
        return empty(fake)
    return torch.empty(fake.shape, dtype=fake.dtype, device=fake.device)


def _fused(step: Compilation, passes: Sequence[Pass]) -> list[Rewrite]:
    """What fusions write anew."""
    seen = _Seen(step.graph)
    step.on_rewrite = seen
    run_passes(step, passes)
    return seen.seen


def _looped(step: Compilation) -> Iterator[Rewrite]:
    """What becomes loops, which the back end makes by itself."""
    run_passes(step, (repeat_conversions, flatten_vectors, remove_dead_code))
    for group in groups(step):
        operands = dict.fromkeys(node for run in group for node in run.operands)
        run = _excerpt([node for run in group for node in run.results], list(operands))
        yield Rewrite("loops", run, run, lambda backend: backend != "graph")


class _Seen:
    """Keeps what rules replace in a graph, and by what."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph, self.seen = graph, list[Rewrite]()
        self._known = set(graph.nodes)

    def __call__(self, name: str, replacements: Replacements) -> None:
        old, new = list(replacements), list(replacements.values())
        inputs = list(dict.fromkeys(self._inputs(new)))
        self.seen.append(Rewrite(name, _excerpt(old, inputs), _excerpt(new, inputs)))
        self._known = set(self.graph.nodes)

    def _inputs(self, nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
        """What was there before, and new nodes are made of."""
        for node in nodes:
            if node in self._known:
                yield node
            else:
                yield from self._inputs(node.all_input_nodes)


def _excerpt(outputs: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> fx.GraphModule:
    """What makes `outputs` of `inputs`, as a graph of its own."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), copied)
            # Named by their operations, so that equal ones have the same code.
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
    """Memory for a tensor with the layout of a fake one."""
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
