"""A call of a jitted function that raises leaves its donated arguments as they were, or says so."""

import pytest
import torch
import torch.nn.functional as F
from registry import NETWORKS

import funcnets
from funcnets import optim, random, train, tree
from funcnets.compiler import api

BACKENDS = ("graph", "native")
QUICK = (*((name, "graph") for name in NETWORKS), ("lenet_bn", "native"), ("resnet18", "native"))
CASES = [
    pytest.param(name, backend, marks=[] if (name, backend) in QUICK else [pytest.mark.slow])
    for name in NETWORKS
    for backend in BACKENDS
]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_label_out_of_range_leaves_a_donated_state_as_it_was(name, backend):
    network = NETWORKS[name]
    net, optimizer = network.layer(), optim.adam(0.01)
    x = random.normal(random.key(1), network.shape)
    labels = torch.arange(len(x))
    step = funcnets.jit(train.make_train_step(net, optimizer), donate_argnums=0, backend=backend)
    state, _ = step(train.create(net, optimizer, random.key(0), x), (x, labels))
    before = tree.map(torch.clone, state)
    classes = net.apply(state.params, state.state, x)[0].shape[1]
    with pytest.raises(ValueError, match=r"label is out of range .*as many classes.*unchanged"):
        step(state, (x, torch.full_like(labels, classes)))
    torch.testing.assert_close(state, before, rtol=0, atol=0)
    step(state, (x, labels))


def gathered(p, index):
    return {"a": p["a"] * 2, "b": p["b"] + p["a"].gather(0, index)}


def scattered(p, index):
    return {"a": torch.tanh(p["a"]), "b": p["b"].scatter_add(0, index, p["a"])}


def indexed(p, index):
    return {"a": p["a"] * 2, "b": p["b"] + p["a"][index]}


def put(p, index):
    return {"a": p["a"] * 2, "b": p["b"].index_put((index,), p["a"])}


def gradient_of_indexed(p, index):
    gradients = torch.func.grad(lambda p: (p["a"][index] * p["b"]).sum())(p)
    return tree.map(lambda value, gradient: value - gradient, p, gradients)


def selected(p, index):
    return {"a": p["a"] * 2, "b": p["b"] + p["a"].index_select(0, index)}


def embedded(p, index):
    return {"a": p["a"] * 2, "b": p["b"] + F.embedding(index, p["a"].view(3, 1)).view(3)}


def divided(p, index):
    return {"a": p["a"] * 2, "b": p["b"] + index // (index - 5)}


def factorized(p, index):
    matrix = torch.eye(3) * (3 - index)
    return {"a": p["a"] * 2, "b": p["b"] + torch.linalg.cholesky(matrix)[0]}


FUNCTIONS = [
    gathered,
    scattered,
    indexed,
    put,
    gradient_of_indexed,
    selected,
    embedded,
    divided,
    factorized,
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_value_that_an_operation_refuses_leaves_donated_arguments_as_they_were(function, backend):
    p = {"a": torch.tensor([0.5, 1.0, -2.0]), "b": torch.tensor([3.0, 4.0, 5.0])}
    good, bad = torch.tensor([0, 2, 1]), torch.tensor([0, 5, 1])
    jitted = funcnets.jit(function, donate_argnums=0, backend=backend)
    expected = function(p, good)
    p = jitted(p, good)
    torch.testing.assert_close(p, expected)
    before = tree.map(torch.clone, p)
    with pytest.raises((ValueError, RuntimeError)) as raised:
        jitted(p, bad)
    torch.testing.assert_close(p, before, rtol=0, atol=0)
    if function not in (divided, factorized):
        assert "index is out of range" in str(raised.value)


def test_other_errors_say_that_donated_arguments_may_be_half_written():
    def failing(*tensors):
        tensors[0].zero_()
        raise MemoryError("no memory for 1 TB")

    step = funcnets.jit(lambda x: x * 2, donate_argnums=0, backend="graph")
    step(torch.ones(3))
    (executable,) = step._executables.values()
    executable.run = failing
    with pytest.raises(MemoryError) as raised:
        step(torch.ones(3))
    assert "go on from a checkpoint" in raised.value.__notes__[0]


def test_an_expanded_argument_cannot_be_donated():
    step = funcnets.jit(lambda x: x + torch.arange(3.0), donate_argnums=0, backend="graph")
    with pytest.raises(ValueError, match=r"donated tensor of shape \(3,\) is expanded"):
        step(torch.zeros(1).expand(3))
    assert step(torch.zeros(3)).tolist() == [0, 1, 2]


def test_kernels_are_there_before_the_first_call(monkeypatch):
    """A compiler that fails at a kernel must not leave a state half written."""
    step = funcnets.jit(lambda x: torch.relu(x) * 2, donate_argnums=0, backend="native")
    order = []
    waited = api._first_failure
    monkeypatch.setattr(api, "_first_failure", lambda k: order.append("built") or waited(k))
    monkeypatch.setattr(
        api._Executable, "__call__", lambda self, tensors: order.append("run") or tensors[0]
    )
    step(torch.ones(3))
    assert order == ["built", "run"]
