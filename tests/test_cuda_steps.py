"""Whole training steps for a GPU, traced, lowered and donated by fake tensors, without one."""

from collections import Counter
from functools import partial
from itertools import product

import pytest
import torch
import walked_gradients

from funcnets import data, models, optim, precision, random, train, tree
from funcnets._torch import FakeTensorMode
from funcnets.compiler import pipeline
from funcnets.compiler.lowerings import DEFAULT

aten = torch.ops.aten
pytestmark = pytest.mark.usefixtures("verified")

BENCHMARKED = [name for name, entry in models.INDEX.items() if entry.is_benchmarked]
QUICK = (("lenet_bn", "float32", "inductor"), ("nin", "bfloat16", "inductor"))
is_computed = torch._C._dispatch_has_computed_kernel_for_dispatch_key
needs_build = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="needs a build of PyTorch for CUDA"
)


@pytest.fixture
def without_a_gpu(monkeypatch):
    """Take derivatives and memory formats for those of a GPU with bfloat16."""
    monkeypatch.setattr(torch.autograd, "grad", walked_gradients.grad)
    for name in ("_select_conv_backend", "_conv_determine_backend_memory_format"):
        monkeypatch.setattr(torch._C, name, in_float32(getattr(torch._C, name)))


def in_float32(function):
    """Choose as for float32, as PyTorch takes a missing GPU for one without bfloat16."""

    def chosen(*args, **options):
        args, options = tree.map(widened, (args, options))
        return function(*args, **options)

    return chosen


def widened(x):
    return x.float() if isinstance(x, torch.Tensor) and x.dtype is torch.bfloat16 else x


def a_step(name, precision_name, device):
    """A training step, its donated leaves and all leaves, as fake tensors."""
    net, recipe = models.get(name, "reference")
    optimizer = optim.sgd(recipe.learning_rate, momentum=0.9)
    x = torch.empty(8, 1, recipe.side, recipe.side, device="meta")
    train_state = train.create(net, optimizer, random.key(0, "meta"), x)
    step = train.make_train_step(
        net,
        optimizer,
        prepare=partial(data.prepare, side=recipe.side),
        policy=precision.POLICIES[precision_name],
    )
    batch = torch.empty(8, 1, 28, 28, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    leaves, structure = tree.flatten((precision.in_channels_last(train_state), batch))
    with FakeTensorMode():
        fakes = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in leaves
        ]
    return lambda *given: step(*tree.unflatten(given, structure)), len(leaves) - 2, fakes


def traced(name, precision_name, device):
    function, donated, leaves = a_step(name, precision_name, device)
    return pipeline.trace(function, leaves, DEFAULT), tuple(range(donated))


def operations(compilation):
    return Counter(str(node.target) for node in compilation.graph.nodes)


def test_walked_gradients_are_those_of_pytorch(monkeypatch):
    """On a CPU, where both can be had."""
    net, _ = models.get("lenet_bn")
    x = random.normal(random.key(1), (4, 1, 28, 28), torch.float64)
    params, state = net.init(random.key(0), x)

    def loss(params):
        return net.apply(params, state, x, train=True)[0].square().sum()

    engine = torch.func.grad(loss)(params)
    monkeypatch.setattr(torch.autograd, "grad", walked_gradients.grad)
    torch.testing.assert_close(torch.func.grad(loss)(params), engine)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet_bn", "densenet", "alexnet"])
def test_walked_gradients_record_the_operations_that_pytorch_does(name, monkeypatch):
    expected = operations(traced(name, "float32", "cpu")[0])
    monkeypatch.setattr(torch.autograd, "grad", walked_gradients.grad)
    assert operations(traced(name, "float32", "cpu")[0]) == expected


@needs_build
@pytest.mark.parametrize(
    ("name", "precision_name", "backend"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(BENCHMARKED, ("float32", "bfloat16"), ("graph", "inductor"))
    ],
)
def test_a_step_on_a_gpu_is_there_alone_and_all_its_state_is_donated(
    name, precision_name, backend, without_a_gpu
):
    compilation, donated = traced(name, precision_name, "cuda")
    check_is_in_channels_last(compilation.graph)
    pipeline.finish(compilation, backend, donated)
    assert set(compilation.aliases.values()) == set(donated)
    check_is_on_a_gpu(compilation.graph)


def check_is_in_channels_last(graph):
    """No convolution has operands to convert from NCHW: channels lie beside each other in all."""
    for target, count in ((aten.convolution.default, 2), (aten.convolution_backward.default, 3)):
        nodes = graph.find_nodes(op="call_function", target=target)
        assert nodes
        for node in nodes:
            operands = [operand.meta["val"] for operand in node.args[:count]]
            assert all(x.stride(1) == 1 or x.shape[1] == 1 for x in operands), node


def check_is_on_a_gpu(graph):
    for node in graph.nodes:
        tensors = [x for x in tree.leaves(node.meta.get("val")) if isinstance(x, torch.Tensor)]
        assert {x.device.type for x in tensors} <= {"cuda"}, node
        if isinstance(node.target, torch._ops.OpOverload):
            assert is_computed(node.target.name(), "CUDA"), node
