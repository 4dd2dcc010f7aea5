"""Private names of PyTorch are where they are looked for, and can be done without."""

import importlib
import warnings

import pytest
import torch
from registry import NETWORKS
from torch import fx

import funcnets
from funcnets import _torch, optim, random, train
from funcnets.compiler.recorder import record, record_by_make_fx


@pytest.mark.parametrize("name", [*_torch.LAZY, *_torch.EAGER])
def test_a_name_is_there(name):
    module, attribute, without = (_torch.LAZY | _torch.EAGER)[name]
    assert getattr(_torch, name) is getattr(importlib.import_module(module), attribute)
    assert without


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = _torch.nothing


@pytest.mark.parametrize(
    ("version", "is_known"),
    [("2.10.1", False), ("2.11.0+cu130", True), ("2.14.1", True), ("3.0", False)],
)
def test_the_releases_that_were_tried(monkeypatch, version, is_known):
    monkeypatch.setattr(torch, "__version__", version)
    _torch._warn.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert _torch.is_known_version() == _torch.is_known_version() == is_known
    assert len(warned) == (not is_known)  # once
    _torch._warn.cache_clear()


def operations(module):
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", ["lenet_bn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_a_release_that_is_not_known_gives_the_same_graphs(monkeypatch, name):
    network = NETWORKS[name]
    net, optimizer = network.layer(), optim.sgd(0.01, 0.9)
    x = random.normal(random.key(1), network.shape)
    state = train.create(net, optimizer, random.key(0), x)
    batch = (x, torch.arange(len(x)))
    step = funcnets.jit(train.make_train_step(net, optimizer))
    expected = step.trace(state, batch)
    monkeypatch.setattr(_torch, "is_known_version", lambda: False)
    actual = step.trace(state, batch)
    assert operations(actual.graph) == operations(expected.graph)
    assert actual.fired == expected.fired


def test_a_captured_tensor_is_recorded_by_make_fx_too():
    captured = torch.arange(3.0)

    def function(x):
        return [x * captured, x]

    for recorded_by in (record, record_by_make_fx):
        module = recorded_by(function, [torch.ones(3)], {})
        assert all("val" in node.meta for node in module.graph.nodes if node.op != "output")
        assert [y.tolist() for y in module(torch.full((3,), 2.0))] == [[0, 2, 4], [2, 2, 2]]


def test_without_the_lazy_graph_module_graphs_are_the_same(monkeypatch):
    graph = fx.Graph()
    graph.output(graph.call_function(torch.neg, (graph.placeholder("x"),)))

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(_torch.importlib, "import_module", missing)
    module = _torch.lazy_graph_module({}, graph)
    _torch.write_code(module)
    assert module(torch.ones(1)).item() == -1
