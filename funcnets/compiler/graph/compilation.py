"""The record that passes share: a graph on its way from a traced function to an executable."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, fx

from funcnets.compiler.graph.edit import Replacements
from funcnets.compiler.graph.structure import Structure

T = TypeVar("T")
Aliases = dict[int, int]  # position of an output -> position of the input whose memory it takes
OnRewrite = Callable[[str, Replacements], None]
OnRefusal = Callable[[str, fx.Node, str], None]


def ignore(*told: object) -> None:
    """Callback for rewrites and refusals that does nothing."""


@dataclass
class Compilation:
    """A function between two passes.

    Attributes:
        module: the graph, with the tensors that the function captured as attributes.
        structure: the structure of the function's result.
        is_lowered: True if lowerings, and with them fusions, may replace operations.
        fired: how often each lowering and fusion took part.
        donated: positions of the inputs whose memory outputs may take.
        aliases: the outputs that are written to the memory of an input.
        source: C++ of the loops that the graph calls.
        after_pass: called after each pass, with its name and what it returned.
        on_rewrite: called with the name of each fusion and what it replaces, while both the old
            and the new nodes are in the graph.
        on_refusal: called with the name of each fusion that a node was a candidate for, the node,
            and in words why it was not fused.
    """

    module: fx.GraphModule
    structure: Structure
    is_lowered: bool = True
    fired: Counter[str] = field(default_factory=Counter)
    donated: tuple[int, ...] = ()
    aliases: Aliases = field(default_factory=dict)
    source: str = ""
    on_rewrite: OnRewrite = ignore
    on_refusal: OnRefusal = ignore
    after_pass: "AfterPass | None" = None
    _analyses: dict[Callable[..., Any], Any] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The graph of `module`."""
        return self.module.graph

    def analysis(self, analyze: Callable[[fx.Graph], T]) -> T:
        """Return `analyze(graph)`, which is computed once for each state of the graph.

        A pass that edits the graph sees the analysis of the graph as the pass found it.
        """
        if analyze not in self._analyses:
            self._analyses[analyze] = analyze(self.graph)
        result: T = self._analyses[analyze]
        return result

    def graph_changed(self) -> None:
        """Forget the analyses, and let the code of `module` be that of its graph."""
        self._analyses.clear()
        self.module.recompile()

    def constants(self) -> tuple[Tensor, ...]:
        """Return the tensors that the function captured and the graph reads."""
        names = {str(node.target) for node in self.graph.find_nodes(op="get_attr")}
        values = [getattr(self.module, name) for name in sorted(names)]
        return tuple(value for value in values if isinstance(value, Tensor))


AfterPass = Callable[[Compilation, str, bool], None]
Pass = Callable[[Compilation], bool]  # True if it changed the graph
