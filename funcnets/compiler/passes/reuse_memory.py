"""Reusing memory: what runs as it is writes results where a value has just been read last.

Fresh memory is dear, as the system clears it page by page when it is first touched: a ReLU of
64×64×48×48 takes 22 ms into fresh memory and 5 in place, batch norm's scale and shift 28 and 9.
"""

from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import is_given, memory_owners
from funcnets.compiler.loops.lower import is_loop

aten = torch.ops.aten

# Operations element by element, with the form that is told where to write, and by which keyword.
WRITING: dict[Any, tuple[Any, str]] = {
    aten.add.Tensor: (aten.add.out, "out"),
    aten.sub.Tensor: (aten.sub.out, "out"),
    aten.mul.Tensor: (aten.mul.out, "out"),
    aten.div.Tensor: (aten.div.out, "out"),
    aten.addcmul.default: (aten.addcmul.out, "out"),
    aten.lerp.Scalar: (aten.lerp.Scalar_out, "out"),
    aten.sigmoid.default: (aten.sigmoid.out, "out"),
    aten.tanh.default: (aten.tanh.out, "out"),
    aten.sigmoid_backward.default: (aten.sigmoid_backward.grad_input, "grad_input"),
    aten.tanh_backward.default: (aten.tanh_backward.grad_input, "grad_input"),
    aten.threshold_backward.default: (aten.threshold_backward.grad_input, "grad_input"),
}
IN_PLACE: dict[Any, Any] = {
    aten.relu.default: aten.relu_.default,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.div.Scalar: aten.div_.Scalar,
}


def reuse_memory(graph: fx.GraphModule) -> None:
    """Let operations of `graph` write over an operand that nothing reads after them.

    Arguments of the graph and what it captured are left alone, but for those that `donate` made
    it write to: a new value is computed in its place, if the old one isn't read after that.
    """
    nodes: list[fx.Node] = list(graph.graph.nodes)
    reads = _Reads(graph.graph)
    for place, node in enumerate(nodes):
        copy = _only_copy(node)
        if node.target in WRITING and copy and reads.end_at(copy.args[0], node, node, place):
            _write(node, copy.args[0])
            graph.graph.erase_node(copy)
    for place, node in enumerate(nodes):
        if is_loop(node):
            _reuse_in_loop(graph.graph, node, place, reads)
        if node.target not in WRITING and node.target not in IN_PLACE:
            continue
        operands = reads.over(node, node, place)
        if operands and node.target in WRITING:
            _write(node, operands[0])
        elif operands:
            node.target = IN_PLACE[node.target]
    graph.recompile()


def _reuse_in_loop(graph: fx.Graph, loop: fx.Node, place: int, reads: "_Reads") -> None:
    """Let each run of a loop write where nothing reads after it, and no other of its runs does."""
    parts: dict[Any, fx.Node] = {part.args[1]: part for part in loop.users}
    operands: Any = loop.args[0]
    targets: Any = loop.args[1]
    chosen: list[fx.Node | None] = []
    for own, results in zip(operands, targets, strict=True):
        taken = {reads.owners[x] for each in operands if each is not own for x in each}
        for _ in results:
            part = parts[len(chosen)]
            copy = _only_copy(part)
            free = reads.over(part, loop, place)
            if copy is not None and reads.end_at(copy.args[0], part, loop, place):
                free.insert(0, copy.args[0])
            target = next((x for x in free if reads.owners[x] not in taken), None)
            if copy is not None and target is copy.args[0]:
                graph.erase_node(copy)
            if target is not None:
                taken.add(reads.owners[target])
            chosen.append(target)
    given = iter(chosen)
    loop.args = (operands, [[next(given) for _ in results] for results in targets])


def _only_copy(node: fx.Node) -> Any:
    """The copy of a value to an argument of the graph, if nothing else reads the value."""
    users: list[Any] = list(node.users)
    if len(users) == 1 and users[0].target is aten.copy_.default:
        return users[0] if users[0].args[0].op == "placeholder" else None
    return None


class _Reads:
    """Where in a graph the memory of each value is read last."""

    def __init__(self, graph: fx.Graph) -> None:
        self.owners = memory_owners(graph)
        self.last = {
            self.owners[operand]: place
            for place, node in enumerate(graph.nodes)
            for operand in _read(node)
        }

    def end_at(self, target: fx.Node, result: fx.Node, node: fx.Node, place: int) -> bool:
        """Whether that result of `node`, which is at `place`, can be written where `target` is."""
        owner = self.owners[target]
        others = (operand for operand in node.all_input_nodes if operand is not target)
        return (
            self.last.get(owner, -1) <= place
            and _layout(target) == _layout(result)
            and owner not in map(self.owners.get, others)
        )

    def over(self, result: fx.Node, node: fx.Node, place: int) -> list[fx.Node]:
        """The operands of `node`, which is at `place`, over which that result can be written."""
        return [
            operand
            for operand in node.all_input_nodes
            if not is_given(self.owners[operand]) and self.end_at(operand, result, node, place)
        ]


def _read(node: fx.Node) -> list[fx.Node]:
    """What the operation reads; an argument that `donate` lets be overwritten is not."""
    inputs = node.all_input_nodes
    overwrites = node.target is aten.copy_.default and inputs[0].op == "placeholder"
    return inputs[1:] if overwrites else inputs


def _write(node: fx.Node, target: fx.Node) -> None:
    node.target, keyword = WRITING[node.target]
    node.kwargs = {**node.kwargs, keyword: target}


def _layout(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.shape, value.dtype, value.device, value.stride())
