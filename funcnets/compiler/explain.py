"""Explanation of a compilation: what tracing and each pass made of a function's graph."""

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from funcnets import tree
from funcnets.compiler import pipeline
from funcnets.compiler.backends.select import Backend
from funcnets.compiler.graph import aliasing
from funcnets.compiler.graph.compilation import AfterPass, Compilation
from funcnets.compiler.graph.edit import Replacements
from funcnets.compiler.lowerings import Lowering

aten = torch.ops.aten
MAX_NAMES = 8  # of nodes that a line of the report lists


class ExplainedPass(NamedTuple):
    """Change that tracing or one pass made.

    Attributes:
        name: name of the pass in `pipeline`; `record` for tracing.
        before: number of operations that the pass found; 0 for tracing.
        after: number of operations that it left.
        read: bytes of all operands of the operations that it left, as without a cache.
        written: bytes of their results.
        is_changed: True if it changed the graph, which a rewrite of arguments also does.
        fired: lowerings and fusions that took part in it, with how often.
        places: names of the first nodes that each fusion replaced, in the code before.
        refused: names of the nodes that were candidates for a fusion and stayed, by the fusion and
            the reason in words.
        code: Python code of the graph after it.
    """

    name: str
    before: int
    after: int
    read: int
    written: int
    is_changed: bool
    fired: dict[str, int]
    places: dict[str, tuple[str, ...]]
    refused: dict[tuple[str, str], tuple[str, ...]]
    code: str

    @property
    def row(self) -> tuple[str, ...]:
        """The columns of the table."""
        fired = ", ".join(f"{name} {count}" for name, count in sorted(self.fired.items()))
        is_silent = self.is_changed and not fired and self.before == self.after
        numbers = (str(self.before), str(self.after), _megabytes(self.read))
        return self.name, *numbers, _megabytes(self.written), "edited" if is_silent else fired


class ExplainedCall(NamedTuple):
    """Decision of the lowerings about a call of an operation, while it was recorded.

    Attributes:
        operation: name of the operation, such as `aten.convolution`.
        shapes: shapes of its tensors.
        taken: name of the lowering that replaced it; None where the operation stayed.
        refused: names of the lowerings that come before, and didn't apply.
    """

    operation: str
    shapes: tuple[tuple[int, ...], ...]
    taken: str | None
    refused: tuple[str, ...]

    def row(self, count: int, numbers: dict[str, int]) -> tuple[str, ...]:
        """Return the columns of the table for so many such calls; reasons by their numbers."""
        shapes = " ".join("x".join(map(str, shape)) or "1" for shape in self.shapes)
        reasons = ", ".join(str(numbers[name]) for name in self.refused) or "-"
        return self.operation, shapes, str(count), self.taken or "stayed", reasons


class Explanation(NamedTuple):
    """Tracing and the passes of one compilation, in order; `print` shows tables.

    Attributes:
        passes: tracing, and each pass.
        calls: the calls of operations for which there are lowerings.
        conditions: of each lowering that refused a call, the condition that wasn't met.
    """

    passes: tuple[ExplainedPass, ...]
    calls: tuple[ExplainedCall, ...]
    conditions: dict[str, str]

    @property
    def code(self) -> str:
        """Python code of the graph after the last pass."""
        return self.passes[-1].code

    def __str__(self) -> str:
        head: tuple[str, ...] = ("pass", "before", "after", "read MB", "written MB", "fired")
        lines = [*_aligned([head, *(each.row for each in self.passes)], right=(1, 2, 3, 4))]
        reasons: dict[str, list[str]] = {}
        for name, condition in self.conditions.items():
            reasons.setdefault(condition, []).append(name)
        numbers = {name: i for i, names in enumerate(reasons.values(), 1) for name in names}
        if self.calls:
            head = ("operation", "shapes", "calls", "lowering", "others not")
            calls = [call.row(count, numbers) for call, count in Counter(self.calls).items()]
            lines += ["", *_aligned([head, *calls], right=(2,))]
        if places := [item for each in self.passes for item in each.places.items()]:
            lines += [
                "",
                "fusions replaced",
                *(f"{rule}: {tree.listed(at, MAX_NAMES)}" for rule, at in places),
            ]
        refused = sorted(item for each in self.passes for item in each.refused.items())
        if refused:
            lines += ["", "candidates that were not fused, and why"]
            lines += [
                f"{rule}: {reason}: {tree.listed(at, MAX_NAMES)}" for (rule, reason), at in refused
            ]
        if reasons:
            lines += ["", "a lowering is not used where this is not true:"]
            for i, (condition, names) in enumerate(reasons.items(), 1):
                lines.append(f"{i}. {condition or 'its own condition'} ({', '.join(names)})")
        return "\n".join(lines)


def explain(
    function: Callable[..., Any],
    leaves: Sequence[Tensor],
    lowerings: Sequence[Lowering],
    backend: Backend,
    donated: Sequence[int],
) -> Explanation:
    """Run all passes of a back end on the graph of `function(*leaves)`, and return what each did.

    Raises TraceError where the function isn't a pure function of tensors.
    """
    passes: list[ExplainedPass] = []
    decisions = _Decisions(lowerings)

    def observe(compilation: Compilation) -> AfterPass:
        passes.clear()  # tracing begins anew where a memory format is refused
        seen: Counter[str] = Counter()
        replaced: dict[str, list[str]] = {}
        refused: dict[tuple[str, str], list[str]] = {}

        def after_pass(compilation: Compilation, name: str, is_changed: bool) -> None:
            before = passes[-1].after if passes else 0
            fired = compilation.fired - seen
            seen.update(fired)
            after, code = count_operations(compilation.graph), compilation.module.code
            traffic = memory_traffic(compilation.graph)
            places = {rule: tuple(nodes) for rule, nodes in replaced.items()}
            reasons = {rule: tuple(nodes) for rule, nodes in refused.items()}
            replaced.clear()
            refused.clear()
            numbers = (before, after, *traffic)
            passes.append(
                ExplainedPass(name, *numbers, is_changed, dict(fired), places, reasons, code)
            )

        def on_rewrite(rule: str, replacements: Replacements) -> None:
            replaced.setdefault(rule, []).append(next(iter(replacements)).name)

        def on_refusal(rule: str, node: fx.Node, reason: str) -> None:
            refused.setdefault((rule, reason), []).append(node.name)

        compilation.on_rewrite, compilation.on_refusal = on_rewrite, on_refusal
        after_pass(compilation, "record", True)
        return after_pass

    traced = pipeline.trace(function, leaves, decisions.lowerings, observe=observe)
    pipeline.finish(traced, backend, donated)
    return Explanation(tuple(passes), decisions.kept(), decisions.conditions)


class _Decisions:
    """Lowerings that note each call that they are asked about.

    Attributes:
        lowerings: the same lowerings, which note what they decide.
        conditions: of each lowering that refused a call, its condition in words.
    """

    def __init__(self, lowerings: Sequence[Lowering]) -> None:
        self.lowerings = tuple(self._noting(i, each) for i, each in enumerate(lowerings))
        self.conditions: dict[str, str] = {}
        self._calls: list[tuple[ExplainedCall, bool]] = []  # True for one that a rewrite makes
        self._last = -1  # position of the lowering that was asked last about the same call
        self._depth = 0  # of rewrites that call operations

    def kept(self) -> tuple[ExplainedCall, ...]:
        """Return the decisions in order, without operations that a rewrite calls and that stay."""
        return tuple(call for call, is_inner in self._calls if call.taken or not is_inner)

    def _noting(self, position: int, lowering: Lowering) -> Lowering:
        def applies(*args: Any, **kwargs: Any) -> bool:
            is_taken = lowering.applies(*args, **kwargs)
            self._note(position, lowering, args, is_taken)
            return is_taken

        def rewrite(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                return lowering.rewrite(*args, **kwargs)
            finally:
                self._depth -= 1
                self._last = -1

        return replace(lowering, applies=applies, rewrite=rewrite)

    def _note(
        self, position: int, lowering: Lowering, args: tuple[Any, ...], is_taken: bool
    ) -> None:
        operation = str(lowering.operation.overloadpacket)
        shapes = tuple(tuple(x.shape) for x in args if isinstance(x, Tensor))
        call = ExplainedCall(operation, shapes, None, ())
        # The lowerings of an operation are asked in order, until one applies.
        if self._calls and self._calls[-1][0][:2] == call[:2] and position > self._last >= 0:
            call, _ = self._calls.pop()
        if is_taken:
            call = call._replace(taken=lowering.name)
        else:
            call = call._replace(refused=(*call.refused, lowering.name))
            self.conditions[lowering.name] = lowering.condition
        self._calls.append((call, self._depth > 0))
        self._last = -1 if is_taken else position


def count_operations(graph: fx.Graph) -> int:
    """Return the number of calls in a graph, without those that take a tuple apart."""
    calls = (node for node in graph.nodes if node.op in ("call_function", "call_module"))
    return sum(node.target is not operator.getitem for node in calls)


def memory_traffic(graph: fx.Graph) -> tuple[int, int]:
    """Return the bytes that the operations of a graph read and write, as without a cache.

    Views of a tensor cost nothing.  An expanded tensor counts once.
    """
    read = written = 0
    for node in graph.nodes:
        targets = set(aliasing.written(node)) if node.op == "call_function" else set()
        is_call = node.op in ("call_function", "call_module")
        is_view = aliasing.viewed(node) is not None and not targets
        if not is_call or is_view or node.target is operator.getitem:
            continue
        is_copy = node.target is aten.copy_.default
        operands = [each for each in node.all_input_nodes if not (is_copy and each in targets)]
        read += sum(sum(_sizes(each.meta["val"])) for each in operands)
        written += sum(_sizes(node.meta["val"]))
    return read, written


def _sizes(value: Any) -> Iterator[int]:
    """Yield the bytes of the tensors in the value of a node."""
    for leaf in value if isinstance(value, tuple | list) else [value]:
        if isinstance(leaf, Tensor):
            sides = zip(leaf.shape, leaf.stride(), strict=True)
            yield math.prod(size for size, step in sides if step) * leaf.element_size()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Iterator[str]:
    """Yield the lines of a table; columns at `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
