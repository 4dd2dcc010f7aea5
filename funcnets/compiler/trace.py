"""Tracing: a pure function of tensors becomes one flat graph of ATen operations.

The function is run once on fake tensors, without arithmetic, so `grad`, `vmap`, batch norm and the
optimizer are all in the graph; lowerings replace operations while it is recorded.
"""

import contextlib
import reprlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._C import _functorch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from funcnets import tree
from funcnets.compiler.errors import TraceError
from funcnets.compiler.graph.aliasing import changed, is_given, memory_owners, written
from funcnets.compiler.lowerings import Lowering, Recorder, Watch, unwatched
from funcnets.compiler.recorder import record

_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, tree.__file__))


class Structure(NamedTuple):
    """A tree without its tensors; its other leaves are None.  Equal ones are interchangeable."""

    spec: tree.type_spec
    places: tuple[int, ...]  # of the tensors among the leaves

    def fill(self, tensors: Iterable[Tensor]) -> Any:
        """The tree with these tensors, in order, in their places."""
        leaves: list[Any] = [None] * self.spec.num_leaves
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree.unflatten(leaves, self.spec)


def take_apart(values: Any) -> tuple[list[Tensor], Structure]:
    """The tensors of a tree, in order, and the rest of it; leaves that are no tensors are lost."""
    leaves, spec = tree.flatten(values)
    places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    return [leaves[place] for place in places], Structure(spec, places)


@dataclass(frozen=True)
class Trace:
    """A function as one graph of ATen operations, for inputs of one structure and shape.

    Attributes:
        graph: the graph; `print(trace)` shows its code.
        structure: the structure of the result, whose tensors the graph gives in order.
        fired: the lowerings that took part, with how often.
        constants: the tensors that the function captured, with their version when traced.
    """

    graph: fx.GraphModule
    structure: Structure
    fired: dict[str, int]
    constants: tuple[tuple[Tensor, int], ...]

    def __str__(self) -> str:
        fired = ", ".join(f"{name} ×{times}" for name, times in self.fired.items()) or "none"
        return f"# lowerings: {fired}\n{self.graph.code.strip()}"

    def check_constants(self, donated: Sequence[Tensor] = ()) -> None:
        """Check that captured tensors are as they were when the function was traced.

        Raises TraceError if one was written to since, and ValueError if one shares its memory with
        a tensor of `donated`, over which results are written.
        """
        given = {_memory(tensor) for tensor in donated} if self.constants else ()
        for constant, version in self.constants:
            if _memory(constant) in given:
                raise ValueError(
                    f"jit: a donated tensor of shape {tuple(constant.shape)} shares its memory "
                    "with one that the function captured: clone one of them, or don't donate"
                )
            if _version(constant) != version:
                raise TraceError(
                    f"jit: a captured tensor of shape {tuple(constant.shape)} changed after the "
                    "function was traced: pass it as an argument, so that its value is read"
                )


def trace(
    function: Callable[..., Any],
    leaves: Sequence[Tensor],
    lowerings: Sequence[Lowering],
    watch: Watch = unwatched,
) -> Trace:
    """Trace `function(*leaves)`, which gives any tree of tensors (or None), for leaves like these.

    `watch` is told of each lowering that is used.

    Raises TraceError where the function branches on a tensor's value, returns something that is
    no tensor, writes to an argument, or draws from torch's hidden generator.
    """
    structures: list[Structure] = []

    def flat(*values: Tensor) -> list[Tensor]:
        result = function(*values)
        for name, leaf in tree.flatten_named(result).items():
            if leaf is not None and not isinstance(leaf, Tensor):
                what = f"the result's leaf `{name}`" if name else "the result"
                raise TraceError(
                    f"jit: {what} is {reprlib.repr(leaf)}, expected a tensor: "
                    "return torch.tensor(...), or leave it out"
                )
        outputs, structure = take_apart(result)
        structures.append(structure)
        return outputs

    recorder = Recorder(lowerings, watch)
    with torch.no_grad(), explained():
        graph = record(flat, leaves, {**_PLAIN_ZEROS, **recorder.table})
    _check_pure(graph)
    # Derivatives compute, on their way, what nobody reads, such as gradients of what is frozen.
    graph.graph.eliminate_dead_code()
    _share_conversions(graph.graph)
    graph.recompile()
    return Trace(graph, structures[-1], recorder.fired, _constants(graph))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Around a function that runs on shapes alone: where it needs a value, this is a TraceError."""
    depth = _functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    except Exception as error:
        # An exception can leave transforms on torch.func's stack, and break all that follows.
        _functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        if _is_data_dependent(error):
            raise TraceError(_explain(_place(error))) from error
        raise


def _plain_zeros(x: Tensor, other: Tensor, *, self_num_batch_dims: int = 0) -> Tensor:
    return x.new_zeros((*x.shape[:self_num_batch_dims], *other.shape))


# Forward derivatives write into zeros that take over the strides of an expanded tensor where one
# is: in the graph, that would write to one place twice.  And they make zeros that can't be written
# to, where results may take the memory of an operand.
_PLAIN_ZEROS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten._new_zeros_with_same_feature_meta.default: _plain_zeros,
    torch.ops.aten._efficientzerotensor.default: torch.zeros,
}


def _is_data_dependent(error: Exception) -> bool:
    kinds = (DataDependentOutputException, DynamicOutputShapeException)
    phrases = ("data-dependent", ".item()", ".numpy()")
    return isinstance(error, kinds) or any(phrase in str(error) for phrase in phrases)


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    user = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    return f"{user[-1].filename}:{user[-1].lineno}: {user[-1].line}" if user else str(error)


def _explain(place: str) -> str:
    return (
        f"jit: the function needs a tensor's value while it is traced ({place}): use torch.where "
        "instead of a branch or a mask, keep .item() outside, or make the value a static argument"
    )


def _check_pure(graph: fx.GraphModule) -> None:
    owners = memory_owners(graph.graph)
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise TraceError(
                f"jit: {node.target} draws from torch's hidden generator: "
                "take a key and draw with funcnets.random"
            )
        if any(is_given(owners[value]) for value in written(node)):
            raise TraceError(
                f"jit: {node.target} writes to an argument of the function, or to a tensor that it "
                "captured: return the new value instead (donate_argnums reuses the memory)"
            )


_CONVERSIONS = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)


def _share_conversions(graph: fx.Graph) -> None:
    """Convert a tensor to a memory format once, where lowerings do it each for itself.

    No other operation that stands twice is joined: recomputation would be undone by that.  What the
    caller is given is memory of its own.
    """
    owners, overwritten = memory_owners(graph), changed(graph)
    (end,) = graph.find_nodes(op="output")
    given = {owners[result] for result in end.all_input_nodes}
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        converts = node.target in _CONVERSIONS and "memory_format" in node.kwargs
        if not converts or node in overwritten or owners[node] in given:
            continue
        first = known.setdefault((node.target, node.args, tuple(node.kwargs.items())), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _version(constant: Tensor) -> int:
    # Inference tensors count no versions: a change to one goes unseen.
    return 0 if constant.is_inference() else constant._version


def _constants(graph: fx.GraphModule) -> tuple[tuple[Tensor, int], ...]:
    names = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    values = [getattr(graph, str(name)) for name in sorted(map(str, names))]
    return tuple((value, _version(value)) for value in values if isinstance(value, Tensor))
