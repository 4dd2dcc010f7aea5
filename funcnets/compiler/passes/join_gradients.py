"""Siblings: 1×1 convolutions that read one map, as an Inception's do, get their gradients together.

The gradients of their outputs, side by side, are those of one convolution with all channels: its
gradient of the weight is theirs, one after the other, and that of the input is the sum of theirs,
without additions between.  Few channels fill no processor.  Milliseconds on two cores with AVX-512,
160, 112 and 24 channels of 512, 6×6, batch 128, apart and together (to join takes 0.36): input 8.5
and 6.7, weight 11.6 and 10.5; in bfloat16 (0.22) 4.9 and 3.7, 5.8 and 4.6.  Outputs gain less than
it takes to part them again.
"""

import heapq
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from funcnets.compiler.graph.aliasing import written
from funcnets.compiler.graph.edit import Replacements, emit, replace
from funcnets.compiler.lowerings.table import unwatched
from funcnets.compiler.passes.fuse import Watch

aten = torch.ops.aten
HOW = [[1, 1], [0, 0], [1, 1], False, [0, 0], 1]  # stride 1, no padding, no groups
OF_INPUT, OF_WEIGHT = [True, False, False], [False, True, False]


class _Sibling(NamedTuple):
    """A convolution's gradient, of its input or of its weight, and what it is made of."""

    gradient: fx.Node
    of_output: fx.Node
    weight: fx.Node


def join_gradients(graph: fx.GraphModule, watch: Watch = unwatched) -> int:
    """Join what can be in `graph`, which must have come from `trace`; gives for how many maps."""
    if any(any(written(node)) for node in graph.graph.nodes):
        return 0  # nodes change places here, and what reads before a write must stay before it
    joined = 0
    of_inputs = _siblings(graph.graph, OF_INPUT)
    for x, siblings in _siblings(graph.graph, OF_WEIGHT).items():
        if len(siblings) > 1:
            replacements = _joined(x, siblings, of_inputs.get(x, []))
            watch("siblings", replacements)
            replace(replacements)
            joined += 1
    if joined:
        _sort(graph.graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return joined


def _siblings(graph: fx.Graph, mask: list[bool]) -> dict[fx.Node, list[_Sibling]]:
    """The gradients that `mask` tells of 1×1 convolutions, by the map that these read."""
    found: dict[fx.Node, list[_Sibling]] = defaultdict(list)
    operation = aten.convolution_backward.default
    for node in graph.find_nodes(op="call_function", target=operation):
        arguments: Any = node.args
        of_output, x, weight, _, *how, wanted = arguments
        usual = how == HOW and wanted == mask and weight.meta["val"].shape[2:] == (1, 1)
        if usual and x.meta["val"].device.type == "cpu":
            (gradient,) = node.users
            found[x].append(_Sibling(gradient, of_output, weight))
    return found


def _joined(x: fx.Node, siblings: Sequence[_Sibling], of_input: Sequence[_Sibling]) -> Replacements:
    graph, replacements = x.graph, {}
    with graph.inserting_before(siblings[-1].gradient):
        of_output = emit(graph, aten.cat.default, [each.of_output for each in siblings], 1)
        weight = emit(graph, aten.cat.default, [each.weight for each in siblings], 0)
        joint = of_output, x, weight, None, *HOW
        results = emit(graph, aten.convolution_backward.default, *joint, OF_WEIGHT)
        gradient, begin = emit(graph, operator.getitem, results, 1), 0
        for each in siblings:
            end = begin + each.weight.meta["val"].shape[0]
            part = emit(graph, aten.slice.Tensor, gradient, 0, begin, end)
            replacements[each.gradient] = part
            begin = end
    sums = {_sum(each.gradient) for each in of_input}
    if len(sums) != 1 or [each.weight for each in of_input] != [each.weight for each in siblings]:
        return replacements
    (total,) = sums
    inputs = {each.gradient for each in of_input}
    terms = [term for term in _terms(total) if term not in inputs]
    with graph.inserting_before(total):
        results = emit(graph, aten.convolution_backward.default, *joint, OF_INPUT)
        new = emit(graph, operator.getitem, results, 0)
        for term in reversed(terms):
            new = emit(graph, aten.add.Tensor, term, new)
    return replacements | {total: new}


def _sum(node: fx.Node) -> fx.Node:
    """The sum that the value becomes a term of, and nothing else; the value itself without one."""
    (user, *others) = node.users
    return _sum(user) if not others and _is_sum(user) else node


def _terms(total: fx.Node, is_whole: bool = True) -> Iterator[fx.Node]:
    """What a sum adds up, where nothing else reads the sums on the way."""
    if _is_sum(total) and (is_whole or len(total.users) == 1):
        for term in total.all_input_nodes:
            yield from _terms(term, False)
    else:
        yield total


def _is_sum(node: fx.Node) -> bool:
    """Whether it adds two values of its own shape and type."""
    if node.target is not aten.add.Tensor or node.kwargs or len(node.all_input_nodes) != 2:
        return False
    values = [each.meta["val"] for each in (node, *node.all_input_nodes)]
    return len({(x.shape, x.dtype) for x in values}) == 1


def _sort(graph: fx.Graph) -> None:
    """Let each node stand after what it reads, and otherwise as it stood."""
    *nodes, end = graph.nodes
    places = {node: place for place, node in enumerate((*nodes, end))}
    missing = {node: len(node.all_input_nodes) for node in places}
    ready = [places[node] for node in nodes if not missing[node]]  # in order, so it is a heap
    while ready and ready[0] < places[end]:
        node = nodes[heapq.heappop(ready)]
        end.prepend(node)
        for user in node.users:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, places[user])
