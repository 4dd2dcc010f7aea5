"""Loops in C++ give the numbers of the operations that they are made of."""

import random as standard_random

import pytest
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

import funcnets
from funcnets import random, tree
from funcnets.compiler import pipeline
from funcnets.compiler.graph.aliasing import is_loop
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.structure import take_apart
from funcnets.compiler.kernels import build
from funcnets.compiler.loops import codegen, expressions, grouping
from funcnets.compiler.loops.lower import fuse_loops
from funcnets.compiler.lowerings import DEFAULT

pytestmark = pytest.mark.usefixtures("verified")

aten = torch.ops.aten

# An operation of each kind, on two values.
OPERATIONS = {
    aten.add.Tensor: lambda x, y: torch.add(x, y, alpha=-0.5),
    aten.sub.Tensor: lambda x, y: torch.sub(x, y, alpha=3),
    aten.mul.Tensor: lambda x, y: x * y,
    aten.div.Tensor: lambda x, y: x / (y.abs() + 1),
    aten.add.Scalar: lambda x, y: aten.add.Scalar(x, 0.1),
    aten.mul.Scalar: lambda x, y: aten.mul.Scalar(x, -3),
    aten.div.Scalar: lambda x, y: aten.div.Scalar(x, 3),
    aten.neg.default: lambda x, y: -x,
    aten.rsqrt.default: lambda x, y: (x * x + 1).rsqrt(),
    aten.pow.Tensor_Scalar: lambda x, y: x**3,
    aten.addcmul.default: lambda x, y: torch.addcmul(x, y, y, value=-0.5),
    aten.lerp.Scalar: lambda x, y: torch.lerp(x, y, 0.3) + torch.lerp(x, y, 0.9),
    aten.relu.default: lambda x, y: x.relu(),
    aten.threshold_backward.default: lambda x, y: aten.threshold_backward(x, y, 0.1),
    aten.sigmoid.default: lambda x, y: x.sigmoid(),
    aten.sigmoid_backward.default: lambda x, y: aten.sigmoid_backward(x, y),
    aten.tanh_backward.default: lambda x, y: aten.tanh_backward(x, y),
    aten._to_copy.default: lambda x, y: x.to(NARROWER[x.dtype]).to(x.dtype),
}
NARROWER = {
    torch.float64: torch.float32,
    torch.float32: torch.bfloat16,
    torch.bfloat16: torch.bfloat16,
}
# What may come between, and what has another layout.
OTHERS = [
    lambda x, y: x.sin(),
    lambda x, y: x.sum((0, 2, 3), keepdim=True) + y,
    lambda x, y: x.to(memory_format=torch.channels_last),
    lambda x, y: x.transpose(2, 3) + y,
    lambda x, y: x[:, :1] * y,
    lambda x, y: x * y[0, 0, 0, 0],
    lambda x, y: (x[..., 1] + y[..., 0] * 2)[..., None],
]
SHAPE = (3, 5, 4, 4)


def program(seed):
    """A random function of three maps, the results of which are some of the values on its way."""
    draw = standard_random.Random(seed)
    drawn = [
        (draw.choice([*OPERATIONS.values()] * 2 + OTHERS), draw.randrange(4), draw.randrange(4))
        for _ in range(draw.randrange(2, 12))
    ]
    kept = [draw.randrange(8) for _ in range(3)]

    def function(*values):
        values = list(values)
        for operation, first, second in drawn:
            result = operation(values[-1 - first % len(values)], values[-1 - second % len(values)])
            values.append(result.expand(SHAPE))
        return [values[-1 - back % len(values)].clone() for back in kept]

    return function


PROGRAMS = [program(seed) for seed in range(60)]


def maps(dtype, layout=torch.contiguous_format):
    values = [random.normal(random.key(seed), SHAPE, dtype) for seed in range(3)]
    return [value.to(memory_format=layout) for value in values]


@pytest.mark.parametrize("donate", [(), (0, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_programs_give_the_same_numbers(dtype, layout, donate):
    """All programs as one graph, so that they are compiled once."""
    values = maps(dtype, layout)

    def function(*values):
        return [program(*values) for program in PROGRAMS]

    jitted = funcnets.jit(function, backend="native", donate_argnums=donate)
    expected = function(*values)
    # Last digits of float32 decide how bfloat16 is rounded, and one program may end with that.
    tolerance = {torch.float64: 1e-9, torch.float32: 2**-7}[dtype]
    for _ in range(2):
        actual = jitted(*(value.clone() for value in values))
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    calls = filter(is_loop, graph_of(jitted).nodes)
    assert sum(len(call.args[0]) for call in calls) > 40


def graph_of(jitted):
    (executable,) = jitted._executables.values()
    return executable.trace.graph.graph


def test_every_expression_is_tried():
    assert OPERATIONS.keys() == expressions.EXPRESSIONS.keys()


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=map(str, OPERATIONS))
def test_an_operation(operation):
    """What is no number, and infinite, is treated as ATen does."""
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-9])
    x, y = (value.flatten().double() for value in torch.meshgrid(special, special, indexing="ij"))
    jitted = funcnets.jit(lambda x, y: operation(x, y) * 1.0 + 0.0, backend="native")
    torch.testing.assert_close(jitted(x, y), operation(x, y), rtol=1e-9, atol=0, equal_nan=True)
    assert any(map(is_loop, graph_of(jitted).nodes))


class RoundedOnce(TorchDispatchMode):
    """Each operation on bfloat16 is computed in float32, and its result rounded."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        wide = tree.map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) else leaf, args)
        return operation(*wide, **kwargs or {}).bfloat16()


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=map(str, OPERATIONS))
def test_an_operation_in_bfloat16(operation):
    """Computed in float32 and rounded once; a sum that is made otherwise may be a unit away."""
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-40, 3.3e38])
    drawn = (random.normal(random.key(seed), (999,)) for seed in (0, 1))
    x, y = (torch.cat([value, special]).bfloat16() for value in drawn)
    y = torch.cat([y[:-7], y[-7:].flip(0)])
    jitted = funcnets.jit(lambda x, y: (-operation(x, y)).float(), backend="native")
    with RoundedOnce():
        expected = operation(x, y)
    actual, expected = jitted(x, y), -expected.float()
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-38, equal_nan=True)
    assert (actual.nan_to_num() != expected.nan_to_num()).float().mean() < 0.01
    assert any(map(is_loop, graph_of(jitted).nodes))


def test_every_bfloat16_is_read_and_rounded_to():
    bits = torch.arange(1 << 16).to(torch.uint16)
    halves = bits.view(torch.bfloat16)
    between = ((bits.to(torch.int64) << 16) + 0x8000).to(torch.uint32).view(torch.float32)

    def function(halves, between):
        return -(-halves).float(), between * 1.0 + 0.0, (between * 1.0).bfloat16()

    jitted = funcnets.jit(function, backend="native")
    for actual, expected in zip(jitted(halves, between), function(halves, between), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_types_meet_in_a_loop():
    """A map that is read in one type and given in others is one pass."""

    def function(x, y):
        z = (x.float() * y).bfloat16().relu()
        return z, z.float() + y, (z.double() + 1) * 2, torch.addcmul(z, z, y), y / z.double()

    x, y = random.normal(random.key(0), SHAPE).bfloat16(), random.normal(random.key(1), SHAPE)
    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(x, y), function(x, y))
    assert sum(map(is_loop, graph_of(jitted).nodes)) == 1


@pytest.mark.parametrize("shape", [(1,), (7,), (5000, 3), (3, 5000), (40_001,), (2, 3, 70, 70)])
def test_sizes(shape):
    x, y = (random.normal(random.key(seed), shape, torch.float64) for seed in (0, 1))

    def function(x, y):
        return x * y + x, (x - y).relu() * y

    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(x, y), function(x, y))


def traced(function, *arguments):
    return pipeline.trace(lambda *given: function(*given), arguments, DEFAULT)


def test_an_empty_map_and_a_deep_one():
    for shape in ((0, 3), (2, 0, 3), (2, 2, 2, 2, 2, 2)):
        x = torch.ones(shape, dtype=torch.float64)
        y = torch.ones(shape[-1:], dtype=torch.float64)
        jitted = funcnets.jit(lambda x, y: (x * y).relu() + y, backend="native")
        torch.testing.assert_close(jitted(x, y), (x * y).relu() + y)


def test_more_than_four_loops_are_left_to_aten():
    # No two dimensions of the sum are walked through evenly by all three.
    x, y = torch.ones(2, 1, 2, 1, 2, dtype=torch.float64), torch.ones(1, 2, 1, 2, 1).double()
    jitted = funcnets.jit(lambda x, y: (x * y).relu() + 1, backend="native")
    torch.testing.assert_close(jitted(x, y), (x * y).relu() + 1)
    assert not any(map(is_loop, graph_of(jitted).nodes))


def test_equal_loops_are_one_function():
    """Of whatever sizes, as those of repeated blocks."""
    graph = traced(
        lambda x, y: (((x * 2).relu().sin() * 2).relu(), (y * 2).relu()),
        torch.ones(2, 3),
        torch.ones(50, 7),
    )
    found = grouping.find_regions(graph)
    assert [len(region.nodes) for region in found] == [2, 2, 2]
    assert len(set(map(codegen.source, found))) == 1


def test_a_region_ends_where_something_else_reads_it():
    graph = traced(lambda x: ((x * 2).relu() + (x * 2).relu().sum(), x), torch.ones(3))
    names = [[node.target for node in region.nodes] for region in grouping.find_regions(graph)]
    chain = [aten.mul.Tensor, aten.relu.default]
    assert names == [chain, [*chain, aten.add.Tensor]]


def test_nothing_is_read_after_it_was_written():
    def function(x):
        y = x * 2
        z = y.clone()
        early = z * 3
        z.add_(1)
        return early + z, early

    x = torch.ones(3)
    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(x), function(x))


def test_without_a_compiler_the_graph_stays(monkeypatch):
    monkeypatch.setattr(build, "load", lambda source, flags: None)
    graph = traced(lambda x: (x * 2).relu(), torch.ones(3))
    before = str(graph.graph)
    assert not fuse_loops(graph)
    assert str(graph.graph) == before


def test_operands_of_other_strides_are_brought_into_form():
    graph = fx.Graph()
    argument = graph.placeholder("x")
    x = graph.call_function(aten.sin.default, (argument,))  # gives the strides that it is given
    argument.meta["val"] = x.meta["val"] = torch.empty(4, 6)
    double = graph.call_function(aten.mul.Tensor, (x, 2.0))
    result = graph.call_function(aten.relu.default, (double,))
    for node in (double, result):
        node.meta["val"] = torch.empty(4, 6)
    graph.output((result,))
    module = fx.GraphModule({}, graph)
    assert fuse_loops(Compilation(module, take_apart([])[1]))
    assert len(list(filter(is_loop, module.graph.nodes))) == 1
    value = random.normal(random.key(0), (6, 4)).T
    torch.testing.assert_close(module(value)[0], (2 * value.sin()).relu())


def test_other_types_and_numbers_that_no_code_can_hold_are_left_to_aten():
    arguments = torch.ones(3), torch.ones(3, dtype=torch.float64), torch.arange(3)
    graph = traced(
        lambda x, y, z: (
            *((x * float("inf")).relu(), (x * y[0]).neg(), (z * z + z) * z, x**2 + x**0.5),
            *((z.float() + x) / x, (x + x).half() * 2),
        ),
        *arguments,
    )
    found = [region.nodes for region in grouping.find_regions(graph)]
    taken = [node for nodes in found if len(nodes) > 1 for node in nodes]
    assert [node.target for node in taken] == [aten.add.Tensor, aten.div.Tensor]
    assert {node.meta["val"].dtype for node in taken} == {torch.float32}


def test_a_loop_reads_what_another_gives():
    def function(x):
        first = (x * 2).relu()
        return first.sin(), (first * 3).relu()

    x = random.normal(random.key(0), (5, 3), torch.float64)
    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(x), function(x))
    assert sum(map(is_loop, graph_of(jitted).nodes)) == 2


def test_small_runs_at_the_ends_are_one_call():
    def function(weight, mean, x):
        scale = weight.bfloat16()
        new = {"weight": weight - x.sum(0) * 0.1, "mean": torch.lerp(mean, x.sin().sum(0), 0.1)}
        return new, (x @ scale.float().T).sum(), -mean

    weight, mean = random.normal(random.key(0), (4, 4)), random.normal(random.key(1), (4,))
    x = random.normal(random.key(2), (5, 4))
    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(weight, mean, x), function(weight, mean, x))
    calls = [call.args[0] for call in graph_of(jitted).nodes if is_loop(call)]
    assert [list(map(len, call)) for call in calls] == [[1, 1], [2, 2]]


@pytest.mark.parametrize("large", [1 << 13, 1 << 16, (1 << 16) + 1])
def test_runs_of_a_call_write_over_nothing_that_another_reads(large):
    """Also where they run at the same time; large ones stay alone."""

    def function(x, y, z):
        a, b = x + y * 2, y + x * 3  # each in the memory of what the other reads
        return a, b, (z * x[0]).relu(), -z

    values = [random.normal(random.key(seed), (n,)) for seed, n in enumerate((large, large, 7))]
    jitted = funcnets.jit(function, backend="native", donate_argnums=(0, 1, 2))
    for _ in range(3):
        expected = function(*values)
        values = [value.clone() for value in values]
        torch.testing.assert_close(jitted(*values), expected)
        x, y, *_ = expected
        values = [x, y, values[-1]]


def test_what_was_written_to_is_read_before():
    """A run whose operand is written over later can't go to the end."""

    def function(x):
        y = x.sin()
        early = -y
        y.add_(1)
        return early, y * x.sum()

    x = torch.ones(3, dtype=torch.float64)
    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(x), function(x))


def test_a_line_is_a_line_in_all_shapes():
    """What batch norm computes a channel is one loop, whatever it is broadcast to."""

    def function(x, scale):
        mean = x.mean((0, 2, 3))
        shift = (mean[:, None, None] * scale.view(1, 4, 1, 1)).squeeze()
        inverse = ((shift * shift + 1).rsqrt() * scale.bfloat16())[None, :, None]
        return x.mean((1, 2, 3), keepdim=True) + inverse.view(4, 1, 1, 1).squeeze(-1), shift

    x, scale = random.normal(random.key(0), (3, 4, 5, 5)), random.normal(random.key(1), (4,))
    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(x, scale), function(x, scale))
    assert sum(map(is_loop, graph_of(jitted).nodes)) == 1


@pytest.mark.parametrize(
    "turned", [lambda x: x.T, lambda x: x[:1].expand(3, 3), lambda x: x.flip(0)]
)
def test_nothing_is_written_over_what_is_read_in_another_order(turned):
    def function(x):
        y = x.sin()
        return (turned(y) * 2).relu().cos()

    x = random.normal(random.key(0), (3, 3), torch.float64)
    jitted = funcnets.jit(function, backend="native")
    torch.testing.assert_close(jitted(x), function(x))
