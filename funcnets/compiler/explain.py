"""Explanation of a compilation: what tracing and each pass made of a function's graph."""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx

from funcnets.compiler import pipeline
from funcnets.compiler.backends.select import Backend
from funcnets.compiler.graph.compilation import AfterPass, Compilation
from funcnets.compiler.lowerings import Lowering


class ExplainedPass(NamedTuple):
    """Change that tracing or one pass made.

    Attributes:
        name: name of the pass in `pipeline`; `record` for tracing.
        before: number of operations that the pass found; 0 for tracing.
        after: number of operations that it left.
        is_changed: True if it changed the graph, which a rewrite of arguments also does.
        fired: lowerings and fusions that took part in it, with how often.
        code: Python code of the graph after it.
    """

    name: str
    before: int
    after: int
    is_changed: bool
    fired: dict[str, int]
    code: str

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The columns of the table."""
        fired = ", ".join(f"{name} {count}" for name, count in sorted(self.fired.items()))
        is_silent = self.is_changed and not fired and self.before == self.after
        return self.name, str(self.before), str(self.after), "edited" if is_silent else fired


class Explanation(NamedTuple):
    """Tracing and the passes of one compilation, in order; `print` shows a table."""

    passes: tuple[ExplainedPass, ...]

    @property
    def code(self) -> str:
        """Python code of the graph after the last pass."""
        return self.passes[-1].code

    def __str__(self) -> str:
        rows = [("pass", "before", "after", "fired"), *(each.row for each in self.passes)]
        width = max(len(row[0]) for row in rows)
        lines = (f"{row[0]:<{width}}  {row[1]:>6}  {row[2]:>5}  {row[3]}" for row in rows)
        return "\n".join(line.rstrip() for line in lines)


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

    def observe(compilation: Compilation) -> AfterPass:
        passes.clear()  # tracing begins anew where a memory format is refused
        seen: Counter[str] = Counter()

        def after_pass(compilation: Compilation, name: str, is_changed: bool) -> None:
            before = passes[-1].after if passes else 0
            fired = compilation.fired - seen
            seen.update(fired)
            after, code = count_operations(compilation.graph), compilation.module.code
            passes.append(ExplainedPass(name, before, after, is_changed, dict(fired), code))

        after_pass(compilation, "record", True)
        return after_pass

    pipeline.finish(pipeline.trace(function, leaves, lowerings, observe=observe), backend, donated)
    return Explanation(tuple(passes))


def count_operations(graph: fx.Graph) -> int:
    """Return the number of calls in a graph, without those that take a tuple apart."""
    calls = (node for node in graph.nodes if node.op in ("call_function", "call_module"))
    return sum(node.target is not operator.getitem for node in calls)
