"""Recorded graphs are PyTorch's own, and know what their nodes give."""

import pytest
import torch
from registry import NETWORKS
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

import funcnets
from funcnets import optim, random, train, tree
from funcnets.compiler.recorder import is_recording, record
from funcnets.compiler.trace import Trace

aten = torch.ops.aten
FLOAT64 = torch.float64


def started(name, dtype=torch.float32):
    """A training step of a small network, and its arguments."""
    network = NETWORKS[name]
    net, optimizer = network.layer(), optim.adam(0.01)
    x = random.normal(random.key(1), network.shape, dtype)
    batch = (x, torch.arange(len(x)))
    return (
        train.make_train_step(net, optimizer),
        train.create(net, optimizer, random.key(0), x),
        batch,
    )


def flat(function, arguments):
    """The function as one of tensors and a list of tensors, and those that it is given."""
    leaves, structure = tree.flatten(arguments)
    return lambda *given: tree.leaves(function(*tree.unflatten(given, structure))), leaves


def targets(graph):
    """The operations of a graph, without those that nobody reads."""
    graph.graph.eliminate_dead_code()
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


QUICK = ("lenet_bn", "nin")


@pytest.fixture(
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS
    ]
)
def name(request):
    return request.param


def test_a_training_step_is_recorded_as_make_fx_does(name):
    function, leaves = flat(*(lambda step, *rest: (step, rest))(*started(name)))
    expected = make_fx(function, tracing_mode="fake")(*leaves)
    assert targets(record(function, leaves, {})) == targets(expected)


def given(x):
    known = torch.tensor([1.0, 2.0, 3.0])
    known[0] = 5
    total = x.clone()
    total.unsqueeze_(0).add_(known)
    first, *rest = x.split(1)
    values, places = x.max(0)
    return [
        total,
        torch.stack(rest),
        values * places,
        first,
        x.new_full((2,), 7),
        x > 0,
        x.sort()[1],
    ]


FUNCTIONS = {
    "in place": given,
    "rows": lambda x: [torch.func.vmap(lambda row: row.cumsum(0) * torch.ones(3))(x.expand(2, 3))],
    "hessian": lambda x: [torch.func.hessian(lambda x: x.sin().prod())(x)],
    "captured": lambda x: [x * CAPTURED, CAPTURED.T],
    "an argument": lambda x: [x],
}
CAPTURED = torch.ones(3, 3)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_is_recorded_as_make_fx_does(function):
    x = torch.tensor([0.3, -1.2, 2.0])
    expected = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    actual = record(function, [x], {})
    # What only changes a tensor's shape is recorded as what gives a view.
    instead = {aten.unsqueeze_.default: aten.unsqueeze.default}
    assert targets(actual) == [instead.get(target, target) for target in targets(expected)]
    torch.testing.assert_close(list(actual(x)), function(x))
    Checked(actual).run(x)


class Checked(fx.Interpreter):
    """Runs a graph, and compares what each node gives with what it says that it gives."""

    checked = 0

    def run_node(self, node):
        result = super().run_node(node)
        if node.op != "output":
            pairs = zip(tree.leaves(node.meta["val"]), tree.leaves(result), strict=True)
            for said, real in pairs:
                assert described(said) == described(real), node.format_node()
                self.checked += 1
        return result


def described(value):
    if not isinstance(value, Tensor):
        return value
    strides = [step for step, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    return value.shape, strides, value.dtype, value.device


def test_nodes_know_what_they_give(name):
    """Shapes, strides and types, also of what the rules put in place of others."""
    step, train_state, batch = started(name)
    traced = funcnets.jit(step).trace(train_state, batch)
    assert isinstance(traced, Trace)
    checked = Checked(traced.graph)
    with torch.no_grad():
        checked.run(*tree.leaves((train_state, batch)))
    assert checked.checked > 200


def test_one_that_is_written_in_place_of_another_is_recorded():
    rewrites = {
        aten.sin.default: lambda x: x.cos() * 2,
        aten.cos.default: lambda x: NotImplemented,
    }
    graph = record(lambda x: [x.sin()], [torch.ones(2)], rewrites)
    assert targets(graph) == [aten.cos.default, aten.mul.Tensor]


def test_whether_it_is_recorded_can_be_told():
    seen = []

    def function(x):
        seen.append(is_recording())
        return [x]

    record(function, [torch.ones(2)], {})
    assert seen == [True]
    assert not is_recording()


def test_a_jitted_function_inside_is_seen_through():
    inner = funcnets.jit(torch.sin)
    assert targets(record(lambda x: [inner(x)], [torch.ones(2)], {})) == [aten.sin.default]


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr:UserWarning")  # by PyTorch
def test_a_function_that_traces_is_traced():
    """PyTorch's linearize makes a graph of its own, and runs that."""

    def function(x):
        _, along = torch.func.linearize(torch.sin, x)
        return [along(x)]

    x = torch.tensor([0.3, -1.2, 2.0])
    torch.testing.assert_close(record(function, [x], {})(x), [x * x.cos()])


def test_nothing_is_computed():
    graph = record(lambda x: [x.expand(1 << 20, 1 << 20).clone()], [torch.ones(())], {})
    assert targets(graph) == [aten.expand.default, aten.clone.default]
