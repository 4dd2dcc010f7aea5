"""Verify a graph after each pass: what its nodes say of themselves, and what they overwrite.

`FUNCNETS_DEBUG=verify` turns this on, and `FUNCNETS_DEBUG=jit` also prints the graph after each
pass.  A failure is an error of a pass, and never one of the function that was traced.
"""

import operator
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from funcnets import tree
from funcnets._debug import is_debugged
from funcnets.compiler.errors import VerificationError
from funcnets.compiler.graph.aliasing import is_input, is_loop, memory, viewed, written
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.edit import fake_value

Reads = dict[tuple[fx.Node, fx.Node], fx.Node | None]  # (reader, operand) -> last writer before


def verifier(compilation: Compilation) -> "Verifier | None":
    """Return what verifies a graph that was just recorded, if FUNCNETS_DEBUG asks for it."""
    if is_debugged("jit") or is_debugged("verify"):
        return Verifier(compilation, is_verbose=is_debugged("jit"))
    return None


class Verifier:
    """Verifies a graph after each pass, against the state in which it was recorded."""

    def __init__(self, compilation: Compilation, *, is_verbose: bool = False) -> None:
        self.is_verbose = is_verbose
        self._writers = {node: node.target for node in compilation.analysis(memory).writers}
        # Nodes as they were when their results were verified: recording has just executed them.
        self._known = {node: _call(node) for node in compilation.graph.nodes if node.op != "output"}
        self._state = _state(compilation.graph)
        self._reads = self._declared_reads(compilation)

    @torch.no_grad()  # as the graph is run
    def __call__(self, compilation: Compilation, name: str, is_changed: bool) -> None:
        """Raise VerificationError if the graph is wrong after the pass `name`.

        `is_changed`: what the pass returned.
        """
        if self.is_verbose:
            code = compilation.module.print_readable(print_output=False)
            print(f"# jit: after {name}\n{code}", file=sys.stderr)
        before, self._state = self._state, _state(compilation.graph)
        if not is_changed:
            _demand(self._state == before, name, "changed the graph and returned False")
            return
        try:
            compilation.graph.lint()
        except RuntimeError as error:
            raise VerificationError(f"jit: after {name}: {error}") from error
        for node in compilation.graph.nodes:
            self._verify_value(compilation, node, name)
        self._verify_reads(compilation, name)
        reads = compilation.analysis(_reads_of)
        for writer, target in self._added_writes(compilation):
            _verify_write(compilation, writer, target, reads, name)

    def _verify_value(self, compilation: Compilation, node: fx.Node, name: str) -> None:
        """Demand that a node gives the shape, strides and dtype that it says that it gives."""
        if node.op == "output":
            return
        _demand("val" in node.meta, name, f"{node} has no fake value")
        call = _call(node)
        if self._known.get(node) == call:
            return
        expected = _layouts(fake_value(node))
        try:
            actual = _loop(compilation, node) if is_loop(node) else _layouts(_executed(node))
        except Exception as error:
            problem = f"jit: after {name}: {node.format_node()} can't be executed: {error}"
            raise VerificationError(problem) from error
        if expected != actual:
            text = node.format_node()
            _demand(False, name, f"{text} says that it gives {expected}, and gives {actual}")
        self._known[node] = call

    def _declared_reads(self, compilation: Compilation) -> Reads:
        """Return which write of the function itself each read of overwritten memory comes after."""
        owners = compilation.analysis(memory).owners
        writes = {
            node: [owners[operand] for operand in written(node)]
            for node in compilation.graph.nodes
            if self._writers.get(node) is node.target
        }
        overwritten = {owner for each in writes.values() for owner in each}
        last: dict[fx.Node, fx.Node] = {}
        reads: Reads = {}
        for node in compilation.graph.nodes:
            for operand in node.all_input_nodes:
                if owners[operand] in overwritten:
                    reads[node, operand] = last.get(owners[operand])
            last.update(dict.fromkeys(writes.get(node, ()), node))
        return reads

    def _verify_reads(self, compilation: Compilation, name: str) -> None:
        """Demand that no read has moved to the other side of a write of the function itself."""
        reads = self._declared_reads(compilation)
        for (node, operand), writer in reads.items():
            before = self._reads.get((node, operand), writer)
            problem = f"{node} reads {operand} after {writer}, where it read it after {before}"
            _demand(before is writer, name, problem)
        self._reads = reads

    def _added_writes(self, compilation: Compilation) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield writes that passes added: the operation, and the value that it writes over."""
        for node in compilation.graph.nodes:
            if is_loop(node):
                targets: Any = node.args[1]
                yield from ((node, x) for each in targets for x in each if x is not None)
            elif self._writers.get(node) is not node.target:
                yield from ((node, operand) for operand in written(node))


def _verify_write(
    compilation: Compilation, writer: fx.Node, target: fx.Node, reads: "Operands", name: str
) -> None:
    """Demand that nothing reads the old value of `target` after it was overwritten."""
    owners = compilation.analysis(memory).owners
    owner = owners[target]
    if is_input(owner):
        inputs = compilation.graph.find_nodes(op="placeholder")
        donated = [inputs[position] for position in compilation.donated]
        _demand(owner in donated, name, f"{writer} writes to {owner}, which is not donated")
    for operand in writer.all_input_nodes:
        is_other = operand is not target and owners[operand] is owner
        _demand(not is_other, name, f"{writer} writes over {operand}, which it reads")
    for reader, operand in reads[owner]:
        is_old = reader > writer and writer not in _views(operand)
        _demand(not is_old, name, f"{reader} reads {operand} after {writer} overwrote it")


Operands = dict[fx.Node, list[tuple[fx.Node, fx.Node]]]


def _reads_of(graph: fx.Graph) -> Operands:
    """Return, by the owner of the memory, what operation reads it through what value."""
    owners = memory(graph).owners
    reads: Operands = defaultdict(list)
    for node in graph.nodes:
        for operand in node.all_input_nodes:
            reads[owners[operand]].append((node, operand))
    return reads


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the node, what it is a view of, and so on."""
    base: fx.Node | None = node
    while base is not None:
        yield base
        base = viewed(base)


def _executed(node: fx.Node) -> Any:
    """Return what a node gives for the fake values of its operands, by PyTorch's own rules."""
    if is_input(node):
        return fake_value(node)
    given: Any = fx.node.map_arg((node.args, node.kwargs), fake_value)
    args, kwargs = given
    if node.target is operator.getitem:
        return args[0][args[1]]
    operation: Any = node.target
    return operation(*args, **kwargs)


def _call(node: fx.Node) -> Any:
    """Return all that the result of a node depends on, and the result that it says it has."""
    operands = tuple(id(fake_value(operand)) for operand in node.all_input_nodes)
    return node.target, node.args, node.kwargs, operands, id(fake_value(node))


def _state(graph: fx.Graph) -> list[Any]:
    """Return what a pass may change in a graph."""
    return [(node, node.target, node.args, node.kwargs) for node in graph.nodes]


def _layouts(value: Any) -> list[Any]:
    return [
        _layout(leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
        for leaf in tree.leaves(value)
        if isinstance(leaf, Tensor)
    ]


def _loop(compilation: Compilation, node: fx.Node) -> list[Any]:
    loop: Any = compilation.module.get_submodule(str(node.target))
    return [_layout(*layout) for plan in loop.plans for layout in plan.results]


def _layout(
    shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Any:
    """Return what must be equal; strides of dimensions of size 1 are arbitrary."""
    is_empty = 0 in shape
    steps = [step for size, step in zip(shape, stride, strict=True) if size > 1 and not is_empty]
    return tuple(shape), steps, dtype, device


def _demand(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise VerificationError(f"jit: after {name}: {problem}; this is an error of funcnets")
