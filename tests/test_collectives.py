"""Collectives in the graphs of `jit` stand in one order, the same in all processes.

Nothing is sent: a graph is traced without its process group.
"""

import pytest
import torch
from registry import NETWORKS

from funcnets import layers, optim, parallel, random, train, tree
from funcnets.compiler import pipeline
from funcnets.compiler.graph.aliasing import memory
from funcnets.compiler.lowerings import DEFAULT
from funcnets.parallel import Axis


def collectives(graph):
    """Name, shape and dtype of each collective in a graph, in order, and what waits for it."""
    found = []
    for node in graph.nodes:
        if getattr(node.target, "namespace", "") == "_c10d_functional":
            value = node.meta["val"]
            found.append((node.target, tuple(value.shape), value.dtype, node.args[1:]))
    return found


def traced(name, axis, count, lowerings, backend):
    """The graph of a training step on a shard of `count` examples."""
    net, optimizer = NETWORKS[name].layer(), optim.sgd(0.1, momentum=0.9)
    _, *sizes = NETWORKS[name].shape
    x, labels = torch.zeros(count, *sizes), torch.zeros(count, dtype=torch.int64)
    state = train.create(net, optimizer, random.key(0), x)
    step = train.make_train_step(net, optimizer, gradient=parallel.gradient(axis))
    leaves, structure = tree.flatten((state, (x, labels)))
    compilation = pipeline.trace(
        lambda *leaves: step(*tree.unflatten(leaves, structure)), leaves, lowerings
    )
    if backend is not None:
        pipeline.finish(compilation, backend, range(len(tree.leaves(state))))
    return compilation


QUICK = (("lenet_bn", "native"), ("resnet18", "native"))
CASES = [
    pytest.param(name, backend, marks=[] if (name, backend) in QUICK else [pytest.mark.slow])
    for name in NETWORKS
    for backend in ("graph", "native", "inductor")
]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_collectives_keep_their_order(name, backend):
    expected = collectives(traced(name, Axis(4, 0), 3, (), None).graph)
    norms = layers.count_batch_norms(NETWORKS[name].layer())
    assert len(expected) == 2 * (2 * norms + 1)  # each is started and waited for
    for rank, count in ((3, 0),) if backend == "native" else ((1, 3), (2, 2)):
        found = traced(name, Axis(4, rank), count, DEFAULT, backend)
        assert collectives(found.graph) == expected


def test_the_sum_lies_where_its_collective_wrote():
    x = torch.zeros(2)
    graph = pipeline.trace(lambda x: (Axis(2).psum(x),), [x], DEFAULT).graph
    operations = torch.ops._c10d_functional
    (started,) = graph.find_nodes(op="call_function", target=operations.all_reduce.default)
    (waited,) = graph.find_nodes(op="call_function", target=operations.wait_tensor.default)
    owners = memory(graph).owners
    assert owners[waited] is owners[started] is started
