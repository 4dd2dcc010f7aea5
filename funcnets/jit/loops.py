"""Loops: runs of operations element by element become one pass each, in C++ for the whole graph.

What lies between convolutions, matrix products and pools is bound by memory, so each pass that is
saved is time saved.  All loops of a graph are compiled at once; equal ones, as those of repeated
blocks, are one function, whatever their sizes.  In bfloat16 each operation is computed in float32
and rounded, as if it stood alone.  Without a compiler the graph stays as it is.
"""

import ctypes
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from funcnets.jit import native
from funcnets.jit.memory import written
from funcnets.jit.native import COMPUTED, STORED

aten = torch.ops.aten
DEPTH = 4  # loops in each other, in the template
CHUNK = 1 << 12  # numbers that one thread takes at a time
LONGEST = 1 << 15  # numbers that one thread takes alone

# Operations as C++ of their operands, in order; what else they take by name.
EXPRESSIONS: dict[Any, str] = {
    aten.add.Tensor: "{0} + {alpha} * {1}",
    aten.sub.Tensor: "{0} - {alpha} * {1}",
    aten.mul.Tensor: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.rsqrt.default: "1 / std::sqrt({0})",
    aten.addcmul.default: "{0} + {value} * {1} * {2}",
    aten.lerp.Scalar: "{2} < 0.5 ? {0} + {2} * ({1} - {0}) : {1} - (1 - {2}) * ({1} - {0})",
    # These let what isn't a number through, as ATen does.
    aten.relu.default: "{0} <= 0 ? 0 : {0}",
    aten.threshold_backward.default: "{1} <= {2} ? 0 : {0}",
    aten.sigmoid.default: "1 / (1 + exponential(-{0}))",
    aten.sigmoid_backward.default: "{0} * (1 - {1}) * {1}",
    aten.tanh_backward.default: "{0} * (1 - {1} * {1})",
    aten._to_copy.default: "{0}",  # to another type
}
# Those whose results need no rounding, where their operands are rounded.
EXACT = {aten.neg.default, aten.relu.default, aten.threshold_backward.default}
# The C library's exponential takes one number at a time.  This is Taylor's series about the nearest
# n·log 2, to half a unit or so in the last place; below the smallest normal number it is 0.
HEADER = """
template <class T>
static inline T exponential(T x) {
    using Limits = std::numeric_limits<T>;
    using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    constexpr int digits = Limits::digits - 1, most = Limits::max_exponent;
    constexpr T log2 = 0.693147180559945309417232L, high = T(0.693145751953125);
    constexpr T low = 0.693147180559945309417232L - 0.693145751953125L;
    x = x > most * log2 ? most * log2 : x < -most * log2 ? -most * log2 : x;
    const T n = std::floor(x * (1 / log2) + T(0.5)), rest = (x - n * high) - n * low;
    T y = 1;
#pragma GCC unroll 13
    for (int i = sizeof(T) == 4 ? 7 : 13; i; --i) y = 1 + y * rest * (T(1) / i);
    const Bits bits = Bits(std::max<Bits>(Bits(n) + most - 1, 0)) << digits;
    T power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}
"""
TEMPLATE = """
extern "C" void NAME(void** at, const long* size, const long* stride) {{
    const long rows = size[3] < {chunk} ? {chunk} / size[3] : 1;
    const bool many = size[0] * size[1] * size[2] * size[3] > {longest};
#pragma omp parallel for collapse(4) if (many)
    for (long a = 0; a < size[0]; ++a)
    for (long b = 0; b < size[1]; ++b)
    for (long row = 0; row < size[2]; row += rows)
    for (long first = 0; first < size[3]; first += {chunk})
        for (long c = row; c < std::min(row + rows, size[2]); ++c) {{
            const long last = std::min<long>(first + {chunk}, size[3]);
            {pointers}
#pragma omp simd
            for (long i = first; i < last; ++i) {{
                {body}
            }}
        }}
}}
"""
POINTER = (
    "{0}* p{1} = ({0}*) at[{1}] + a * stride[{2}] + b * stride[{2} + 1] + c * stride[{2} + 2];"
)


def fuse_loops(graph: fx.GraphModule) -> str:
    """Make loops of `graph`, which must have come from `trace`; gives the C++ of them all.

    Without a compiler, or anything to make loops of, the graph stays, and there is no C++.
    """
    _repeat_conversions(graph.graph)
    names: dict[str, str] = {}  # of functions, by their sources
    found = [run for run in runs(graph.graph) if len(run.nest) <= DEPTH]
    plans = [plan(run, names.setdefault(source(run), f"loop{i}")) for i, run in enumerate(found)]
    code = "\n".join([HEADER, *(text.replace("NAME", name) for text, name in names.items())])
    library = native.load(code) if found else None
    if library is None:
        return ""
    for i, (run, each) in enumerate(zip(found, plans, strict=True)):
        graph.add_submodule(f"loop{i}", Loop(each, library))
        _replace(graph.graph, run, f"loop{i}")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return code


def _repeat_conversions(graph: fx.Graph) -> None:
    """Let each operation convert a map from bfloat16 for itself, so that it is read as it is."""
    for node in list(graph.nodes):
        if node.target is not aten._to_copy.default or not _is_element_wise(node):
            continue
        types = [_dtype(x) for x in (*node.all_input_nodes, node)]
        if types == [torch.bfloat16, torch.float32]:
            for user in list(node.users):
                if _is_element_wise(user) and _shape(user) == _shape(node):
                    with graph.inserting_before(user):
                        user.replace_input_with(node, graph.node_copy(node))
    graph.eliminate_dead_code()


def is_loop(node: fx.Node) -> bool:
    """Whether the node, of a graph, calls a loop: with its operands and where to write."""
    return node.op == "call_module"


def _replace(graph: fx.Graph, run: "Run", name: str) -> None:
    results = run.results
    with graph.inserting_after(run.nodes[-1]):
        call = graph.call_module(name, (run.operands, [None] * len(results)))
    call.meta["val"] = [node.meta["val"] for node in results]
    for i, node in reversed(list(enumerate(results))):
        with graph.inserting_after(call):
            part = graph.call_function(operator.getitem, (call, i))
        part.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in run.nodes)
    for node in reversed(run.nodes):
        graph.erase_node(node)


class Run:
    """Operations on maps of one shape that can be one loop, where the last of them stands.

    What they take is read off the graph each time, as other runs in it may have become loops.
    """

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.nodes = tuple(nodes)

    def split(self, values: Sequence[fx.Node]) -> tuple["Run", "Run"]:
        """The operations that `values` are made of, and the others."""
        needed = set(values)
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        parts = ([node for node in self.nodes if (node in needed) is of] for of in (True, False))
        return Run(next(parts)), Run(next(parts))

    @property
    def operands(self) -> list[fx.Node]:
        """What they take from elsewhere, each once."""
        inside = set(self.nodes)
        taken = dict.fromkeys(x for node in self.nodes for x in node.all_input_nodes)
        return [operand for operand in taken if operand not in inside]

    @property
    def results(self) -> list[fx.Node]:
        """Those that are read elsewhere."""
        inside = set(self.nodes)
        return [node for node in self.nodes if not inside.issuperset(node.users)]

    @property
    def nest(self) -> list[tuple[int, tuple[int, ...]]]:
        """Its loops, and the steps of operands and results in them, as `nest` gives them."""
        values = [node.meta["val"] for node in (*self.operands, *self.results)]
        return nest(values[-1], values)


def runs(graph: fx.Graph) -> list[Run]:
    """Runs of at least two operations, in order.

    Where something else reads a value of a run, what it is made of ends there, so that it can stand
    there as a whole.  The rest goes on, so that a later loop can compute it for itself; it moves to
    that place in `graph`.
    """
    begun: dict[fx.Node, Run] = {}  # runs that can go on, by their nodes
    found: dict[Run, None] = {}

    def begin(run: Run) -> None:
        begun.update(dict.fromkeys(run.nodes, run))
        found[run] = None

    for node in graph.nodes:
        if any(written(node)):
            begun.clear()  # what stands before this must be read before it
        read = [operand for operand in node.all_input_nodes if operand in begun]
        fitting = [x for x in read if _is_element_wise(node) and _shape(x) == _shape(node)]
        joined = dict.fromkeys(begun[operand] for operand in fitting)
        for run in dict.fromkeys(begun[operand] for operand in read):
            if run in joined:
                continue
            needed, rest = run.split(read)
            for member in run.nodes:
                del begun[member]
            del found[run]
            found[needed] = None
            if rest.nodes:
                begin(rest)
            for member in rest.nodes:  # nothing has read them yet, and they may read `needed`
                node.prepend(member)
        if _is_element_wise(node):
            for run in joined:
                del found[run]
            begin(Run([member for run in joined for member in run.nodes] + [node]))
    return [run for run in found if len(run.nodes) > 1]


def _shape(node: fx.Node) -> Any:
    return node.meta["val"].shape


def _dtype(node: fx.Node) -> torch.dtype:
    return node.meta["val"].dtype


def _is_element_wise(node: fx.Node) -> bool:
    converts = node.target is aten._to_copy.default
    known = {"dtype", "layout", "device"} if converts else {"alpha", "value"}
    if node.target not in EXPRESSIONS or node.kwargs.keys() - known:
        return False
    values = [node.meta["val"], *(operand.meta["val"] for operand in node.all_input_nodes)]
    numbers = () if converts else (*node.args, *node.kwargs.values())
    return (
        all(x.device.type == "cpu" and x.dtype in STORED for x in values)
        and (converts or len({x.dtype for x in values}) == 1)
        and all(
            isinstance(x, int | float) and math.isfinite(x)
            for x in numbers
            if not isinstance(x, fx.Node)
        )
    )


class Plan(NamedTuple):
    """What a loop takes and gives, and how it walks over that."""

    function: str  # its name in the library
    operands: list[tuple[Sequence[int], Sequence[int]]]  # shape and strides
    results: list[tuple[Sequence[int], Sequence[int], torch.dtype, torch.device]]
    size: list[int]  # of each of the `DEPTH` loops
    strides: list[int]  # of each loop, operand by operand, then of the results


def plan(run: Run, function: str) -> Plan:
    """The plan of a run, which the C++ `function` is for."""
    operands, results = ([n.meta["val"] for n in nodes] for nodes in (run.operands, run.results))
    outer = [(1, (0,) * (len(operands) + len(results)))] * (DEPTH - len(run.nest))
    size, steps = zip(*outer, *run.nest, strict=True)
    return Plan(
        function,
        [(x.shape, x.stride()) for x in operands],
        [(x.shape, x.stride(), x.dtype, x.device) for x in results],
        list(size),
        [step for each in zip(*steps, strict=True) for step in each],
    )


class Loop(torch.nn.Module):
    """A run of operations as a function of its operands, by its C++ in `library`."""

    def __init__(self, plan: Plan, library: ctypes.CDLL) -> None:
        super().__init__()
        self.plan = plan
        self.size = (ctypes.c_long * DEPTH)(*plan.size)
        self.strides = (ctypes.c_long * len(plan.strides))(*plan.strides)
        self.pointers = ctypes.c_void_p * (len(plan.operands) + len(plan.results))
        self.function: Callable[..., None] = library[plan.function]

    def forward(self, operands: list[Tensor], targets: list[Tensor | None]) -> list[Tensor]:
        """The results, each in its target, or in new memory where that is None."""
        given = [
            x if x.stride() == stride else x.new_empty_strided(shape, stride).copy_(x)
            for x, (shape, stride) in zip(operands, self.plan.operands, strict=True)
        ]
        results = [
            torch.empty_strided(shape, stride, dtype=dtype, device=device) if x is None else x
            for x, (shape, stride, dtype, device) in zip(targets, self.plan.results, strict=True)
        ]
        pointers = self.pointers(*(x.data_ptr() for x in (*given, *results)))
        self.function(pointers, self.size, self.strides)
        return results


def source(run: Run) -> str:
    """C++ of a run, as the function NAME: the same for runs that walk alike, whatever the sizes."""
    operands, results = run.operands, run.results
    steps = run.nest[-1][1] if run.nest else (0,) * (len(operands) + len(results))

    def element(i: int) -> str:
        return f"p{i}[{ {0: '0', 1: 'i'}.get(steps[i], f'i * stride[{DEPTH * i + DEPTH - 1}]') }]"

    types = [STORED[_dtype(node)] for node in (*operands, *results)]
    names: dict[fx.Node, str] = {}
    lines: list[str] = []

    def note(node: fx.Node, value: str) -> None:
        names[node] = f"v{len(lines)}"
        lines.append(f"const {COMPUTED[_dtype(node)]} {names[node]} = {value};")

    for i, node in enumerate(operands):
        note(node, f"computed({element(i)})")
    for node in run.nodes:
        value, to = _expression(node, names), _dtype(node)
        note(node, value if node.target in EXACT else f"rounded<{STORED[to]}>({value})")
    for i, node in enumerate(results, len(operands)):
        lines.append(f"{element(i)} = kept<{types[i]}>({names[node]});")
    pointers = [POINTER.format(each, i, DEPTH * i) for i, each in enumerate(types)]
    return TEMPLATE.format(
        chunk=CHUNK, longest=LONGEST, pointers=" ".join(pointers), body=" ".join(lines)
    )


def _expression(node: fx.Node, names: dict[fx.Node, str]) -> str:
    """C++ of an operation, with its operands by their names."""

    def literal(number: Any) -> str:
        return f"{COMPUTED[_dtype(node)]}({float(number)!r})"

    values = [names[x] if isinstance(x, fx.Node) else literal(x) for x in node.args]
    if node.target is aten._to_copy.default:
        return values[0]
    factors = {"alpha": 1, "value": 1} | node.kwargs
    scalars = {name: literal(factor) for name, factor in factors.items()}
    return EXPRESSIONS[node.target].format(*values, **scalars)


def nest(result: Tensor, tensors: Sequence[Tensor]) -> list[tuple[int, tuple[int, ...]]]:
    """Loops over `result`, the innermost last: the size of each, and how far each tensor steps.

    Dimensions that all tensors walk through evenly are one loop.
    """
    strides = [_expanded_strides(tensor, result.ndim) for tensor in tensors]
    loops: list[tuple[int, tuple[int, ...]]] = []
    for d in sorted(range(result.ndim), key=result.stride, reverse=True):
        size, steps = result.shape[d], tuple(each[d] for each in strides)
        if size == 1:
            continue
        if loops and loops[-1][1] == tuple(size * step for step in steps):
            size *= loops.pop()[0]
        loops.append((size, steps))
    return loops


def _expanded_strides(tensor: Tensor, ndim: int) -> list[int]:
    """The strides of a tensor that is expanded to a larger shape, of `ndim` dimensions."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return [0] * (ndim - tensor.ndim) + [0 if size == 1 else stride for size, stride in sides]
