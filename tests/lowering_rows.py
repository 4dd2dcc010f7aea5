"""Form of the table of lowerings: a row, the calls in it, and how to make them."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from hypothesis import strategies as st
from tensors import numbers
from torch import Tensor

from funcnets import tree
from funcnets.compiler import Lowering

aten = torch.ops.aten
FLOATS = (torch.float64, torch.float32)
STORED = (*FLOATS, torch.bfloat16)
ALL = (*STORED, torch.float16)


class Call:
    """Arguments of an operation."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options

    def map(self, function: Any) -> "Call":
        """Return the call with `function` applied to its tensors."""

        def on_tensors(leaf: Any) -> Any:
            return function(leaf) if isinstance(leaf, Tensor) else leaf

        return Call(*tree.map(on_tensors, list(self.arguments)), **self.options)

    def to(self, dtype: torch.dtype) -> "Call":
        """Return the call with floating-point tensors of a dtype."""
        return self.map(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def magnitude(self) -> "Call":
        """Return the call on absolute values, of which sums bound those of the call."""
        call = self.map(torch.Tensor.abs)
        scales = {name: x and abs(x) for name, x in self.options.items()}
        return Call(*call.arguments, **scales)

    def replace(self, index: int, value: Any) -> "Call":
        """Return the call with another argument at `index`."""
        return Call(*self.arguments[:index], value, *self.arguments[index + 1 :], **self.options)

    def of(self, operation: Any) -> list[Tensor | None]:
        """Return the results of an operation, always as a list."""
        result = operation(*self.arguments, **self.options)
        return list(result) if isinstance(result, tuple | list) else [result]

    def on(self, operation: Any, tensors: Any) -> Any:
        """Return the result of an operation on other tensors in the place of the call's own."""
        given = iter(tensors)
        return operation(*self.map(lambda _: next(given)).arguments, **self.options)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return [leaf for leaf in tree.leaves(list(self.arguments)) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Variant:
    """What a kernel is compiled for.

    Attributes:
        example: a call for which the rules of the row are true.
        calls: any calls for which the rewrite is right, faster or not.
    """

    example: Call
    calls: st.SearchStrategy[Call] | None = None


@dataclass(frozen=True)
class Row:
    """A lowering, with that of the derivative.

    Attributes:
        forward: the lowering of the operation.
        variants: calls, by what a kernel is compiled for.
        stays: calls for which the rules are false, by the reason.
        backward: the lowering of the derivative, if there is one.
        dtypes: those for which the rules are true; the first is that of the tests in a graph.
        tolerance: largest error, by dtype, against numbers of the size of the largest sum.
        same_bits: lowerings that give the bits that ATen gives.
        rounds_once: bfloat16 results, but the sum of a bias, are those in float32, rounded.
        result_format: memory format of the result.
        keeps_weight_format: the gradient of a contiguous weight is contiguous too.
        needs_compiler: the rules are false without a compiler, and `prepare` begins a kernel.
        per_example: the operation can be mapped over the first dimension of its first operand.
        processor: answers about the processor: module, name of a function, answer.
        backends: for the test in a graph.
    """

    forward: Lowering
    variants: dict[str, Variant]
    stays: dict[str, Call]
    backward: Lowering | None = None
    dtypes: tuple[torch.dtype, ...] = STORED
    tolerance: dict[torch.dtype, float] | None = None
    same_bits: tuple[Lowering | None, ...] = ()
    rounds_once: bool = False
    result_format: torch.memory_format | None = None
    keeps_weight_format: bool = False
    needs_compiler: bool = False
    per_example: bool = True
    processor: tuple[tuple[ModuleType, str, bool], ...] = ()
    backends: tuple[str, ...] = ("graph",)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        """The lowering, and that of the derivative."""
        return (self.forward,) if self.backward is None else (self.forward, self.backward)

    def bound(self, dtype: torch.dtype) -> float:
        """The largest error in a dtype."""
        usual = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}
        return (usual | (self.tolerance or {}))[dtype]


# How the derivative of each operation is called: with the gradient of the result.
DERIVATIVES = {
    aten.convolution.default: lambda call, results, mask: [
        call.arguments[0],
        call.arguments[1],
        None if call.arguments[2] is None else list(call.arguments[2].shape),
        *call.arguments[3:],
        [*mask[:2], mask[2] and call.arguments[2] is not None],
    ],
    aten.avg_pool2d.default: lambda call, results, mask: [
        *call.arguments,
        *[[], [0, 0], False, True, None][len(call.arguments) - 2 :],
    ],
    aten.max_pool2d_with_indices.default: lambda call, results, mask: [*call.arguments, results[1]],
}


def derivative(row: Row, call: Call, mask: Any = (True, True, True)) -> Call:
    """Return a call of the derivative, with a gradient of the dtype of the call."""
    results = call.of(row.forward.operation)
    grad = numbers(*results[0].shape, seed=3).to(results[0])
    return Call(grad, *DERIVATIVES[row.forward.operation](call, results, mask))


def convolution(
    x, weight, *, stride=1, padding=0, dilation=1, transposed=False, groups=1, bias=True, seed=0
):
    """Return a call of `aten.convolution` on shapes; numbers stand for both sides."""

    def both(number):
        return [number, number] if isinstance(number, int) else list(number)

    rest = (both(dilation), transposed, [0, 0], groups)
    shift = numbers(weight[0], seed=2) if bias else None
    tensors = numbers(*x, seed=seed), numbers(*weight, seed=1), shift
    return Call(*tensors, both(stride), both(padding), *rest)


def pairs(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


seeds = st.integers(0, 999)


def fitting(draw, kernel, padding, most):
    """Return sides of an image, on which a padded kernel fits."""
    return [
        draw(st.integers(max(1, k - 2 * p), most)) for k, p in zip(kernel, padding, strict=True)
    ]
