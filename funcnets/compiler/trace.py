"""Tracing: a pure function of tensors becomes one flat graph of ATen operations.

The function is run once on fake tensors, without arithmetic, so `grad`, `vmap`, batch norm and the
optimizer are all in the graph; lowerings replace operations while it is recorded.
"""

import contextlib
import reprlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from funcnets import _torch, tree
from funcnets._torch import functorch
from funcnets.compiler.absent_tangents import AbsentTangents
from funcnets.compiler.errors import TraceError
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.structure import Structure, take_apart
from funcnets.compiler.lowerings import Lowering, Recorder, Watch, unwatched
from funcnets.compiler.recorder import record, record_by_make_fx

_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, tree.__file__))


@dataclass(frozen=True)
class Trace:
    """A function as one graph of ATen operations, for inputs of one structure and shape.

    Attributes:
        graph: the graph; `print(trace)` shows its code.
        structure: the structure of the result, whose tensors the graph gives in order.
        fired: the lowerings and fusions that took part, with how often.
    """

    graph: fx.GraphModule
    structure: Structure
    fired: dict[str, int]

    def __str__(self) -> str:
        return self.graph.print_readable(print_output=False)


def record_function(
    function: Callable[..., Any],
    leaves: Sequence[Tensor],
    lowerings: Sequence[Lowering],
    watch: Watch = unwatched,
) -> Compilation:
    """Record `function(*leaves)`, which gives a tree of tensors (or None), as a graph.

    Args:
        function: is run once, on fake tensors.
        leaves: tensors of the shapes, strides, dtypes and devices to record for.
        lowerings: replace operations while these are recorded.
        watch: called with each lowering that is used.

    Raises:
        TraceError: where the function branches on a tensor's value, or returns something that is
            no tensor.
    """
    structures: list[Structure] = []

    def flat(*values: Tensor) -> list[Tensor]:
        with _CheckedFunctions():
            result = function(*values)
        _check_result(result)
        outputs, structure = take_apart(result)
        structures.append(structure)
        return outputs

    recorder = Recorder(lowerings, watch)
    zeros = torch.ops.aten._new_zeros_with_same_feature_meta.default
    rewrites = {zeros: _zeros_of_layout, **AbsentTangents().rewrites, **recorder.table}
    with torch.no_grad(), explained():
        recorded_by = record if _torch.is_known_version() else record_by_make_fx
        module = recorded_by(flat, leaves, rewrites)
    return Compilation(module, structures[-1], bool(lowerings), Counter(recorder.fired))


class _CheckedFunctions(TorchFunctionMode):
    """Mode that records `one_hot` as a scatter, which raises for a class that is out of range.

    PyTorch compares fake tensors with all classes instead, and such a class becomes zeros.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        is_one_hot = function in (F.one_hot, torch.ops.aten.one_hot, torch.ops.aten.one_hot.default)
        return (_one_hot if is_one_hot else function)(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0 or tensor.dtype != torch.int64:  # PyTorch reads or refuses them
        return F.one_hot(tensor, num_classes)
    return tensor.new_zeros((*tensor.shape, num_classes)).scatter(-1, tensor.unsqueeze(-1), 1)


def _check_result(result: Any) -> None:
    """Raise TraceError unless all leaves are tensors or None."""
    for name, leaf in tree.flatten_named(result).items():
        if leaf is not None and not isinstance(leaf, Tensor):
            what = f"the result's leaf `{name}`" if name else "the result"
            raise TraceError(
                f"jit: {what} is {reprlib.repr(leaf)}, expected a tensor: "
                "return torch.tensor(...), or leave it out"
            )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise TraceError where a function that is run inside on fake tensors needs a value."""
    depth = functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    except Exception as error:
        # An exception can leave transforms on torch.func's stack, and break all that follows.
        functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        if _is_data_dependent(error):
            raise TraceError(_explain(_place(error))) from error
        raise


def _zeros_of_layout(x: Tensor, other: Tensor, *, self_num_batch_dims: int = 0) -> Tensor:
    """Return zeros with the strides of `other`, after the batch dimensions of `x`.

    Forward derivatives are written into these.  They are contiguous where `other` is expanded: to
    write there would write to one place twice.
    """
    batch = x.shape[:self_num_batch_dims]
    steps = [step for size, step in zip(other.shape, other.stride(), strict=True) if size > 1]
    if 0 in steps:
        return x.new_zeros((*batch, *other.shape))
    zeros = x.new_zeros((*batch, other.untyped_storage().nbytes() // other.element_size()))
    return zeros.as_strided(
        (*batch, *other.shape), (*zeros.stride()[:self_num_batch_dims], *other.stride())
    )


def _is_data_dependent(error: Exception) -> bool:
    kinds = (_torch.DataDependentOutputException, _torch.DynamicOutputShapeException)
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
