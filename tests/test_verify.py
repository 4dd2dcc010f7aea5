"""The verifier finds what a broken pass does to a graph, and nothing in what the passes do."""

import pytest
import torch
from registry import NETWORKS

import funcnets
from funcnets import optim, random, train
from funcnets.compiler import DEFAULT, pipeline
from funcnets.compiler.errors import VerificationError
from funcnets.compiler.graph.aliasing import is_loop
from funcnets.compiler.graph.structure import take_apart
from funcnets.compiler.kernels import build
from funcnets.precision import POLICIES

aten = torch.ops.aten
pytestmark = pytest.mark.usefixtures("verified")


def function(x, y):
    """One whose result `total` is read twice, and that writes to what it made."""
    total = x.sin()
    parts = (total * y).relu(), total.cos()
    total.add_(1)
    return *parts, total * 2


def traced(donated=()):
    leaves = [torch.ones(4, 4), torch.ones(4, 4)]
    compilation = pipeline.trace(function, leaves, DEFAULT)
    compilation.donated = donated
    return compilation


def find(compilation, target):
    (node, *_) = compilation.graph.find_nodes(op="call_function", target=target)
    return node


def says_another_shape(compilation):
    node = find(compilation, aten.cos.default)
    node.meta["val"] = node.meta["val"].new_empty(4, 3)


def says_other_strides(compilation):
    node = find(compilation, aten.cos.default)
    node.meta["val"] = node.meta["val"].new_empty(4, 4).T


def says_another_dtype(compilation):
    node = find(compilation, aten.cos.default)
    node.meta["val"] = node.meta["val"].double()


def says_nothing(compilation):
    node = find(compilation, aten.cos.default)
    with compilation.graph.inserting_before(node):
        compilation.graph.call_function(aten.neg.default, (node.args[0],))


def changes_a_layout(compilation):
    node = find(compilation, aten.relu.default)
    with compilation.graph.inserting_before(node):
        node.args = (compilation.graph.call_function(aten.t.default, node.args),)
    (added,) = node.all_input_nodes
    added.meta["val"] = added.all_input_nodes[0].meta["val"].t()


def reads_before_it_is_made(compilation):
    find(compilation, aten.sin.default).prepend(find(compilation, aten.relu.default))


def writes_over_what_is_read_later(compilation):
    node = find(compilation, aten.mul.Tensor)
    node.target, node.kwargs = aten.mul.out, {"out": node.args[0]}


def writes_over_what_it_reads(compilation):
    node = find(compilation, aten.mul.Tensor)
    last = find(compilation, aten.relu.default)
    with compilation.graph.inserting_before(last):
        flat = compilation.graph.call_function(aten.t.default, (node,))
        flat.meta["val"] = node.meta["val"].t()
    last.target, last.args = aten.mul.out, (node, node)
    last.kwargs, last.meta["val"] = {"out": flat}, flat.meta["val"]


def writes_to_an_argument(compilation):
    node = find(compilation, aten.sin.default)
    node.target, node.kwargs = aten.sin.out, {"out": node.args[0]}


def copies_before_the_last_read(compilation):
    node = find(compilation, aten.mul.Tensor)
    x, y = compilation.graph.find_nodes(op="placeholder")
    with compilation.graph.inserting_before(node):
        copy = compilation.graph.call_function(aten.copy_.default, (y, x))
        copy.meta["val"] = y.meta["val"]


def moves_a_read_behind_a_write(compilation):
    find(compilation, aten.add_.Tensor).append(find(compilation, aten.cos.default))


BROKEN = {
    says_another_shape: r"says that it gives .*\(4, 3\).* and gives .*\(4, 4\)",
    says_other_strides: r"says that it gives .*\[1, 4\].* and gives .*\[4, 1\]",
    says_another_dtype: "float64",
    says_nothing: "no fake value",
    changes_a_layout: r"says that it gives .*\[4, 1\].* and gives .*\[1, 4\]",
    reads_before_it_is_made: "before",
    writes_over_what_is_read_later: "reads sin after mul overwrote it",
    writes_over_what_it_reads: "writes over mul, which it reads",
    writes_to_an_argument: "writes to argument0, which is not donated",
    copies_before_the_last_read: "reads argument1 after copy__default overwrote it",
    moves_a_read_behind_a_write: "cos reads sin after add_, where it read it after None",
}


@pytest.mark.parametrize(
    ("broken", "message"), BROKEN.items(), ids=[each.__name__ for each in BROKEN]
)
def test_a_broken_pass_is_found(broken, message):
    compilation = traced(donated=(1,))

    def change(compilation):
        broken(compilation)
        return True

    with pytest.raises(VerificationError, match=message):
        pipeline.run_passes(compilation, (change,))


def test_a_pass_that_hides_its_change_is_found():
    def hide(compilation):
        find(compilation, aten.cos.default).target = aten.tan.default
        return False

    with pytest.raises(VerificationError, match="after hide: changed the graph and returned False"):
        pipeline.run_passes(traced(), (hide,))


@pytest.mark.skipif(not build.is_available(), reason="needs a compiler")
def test_a_loop_that_writes_over_what_is_read_later_is_found():
    def write(compilation):
        (loop,) = filter(is_loop, compilation.graph.nodes)
        (operands, _) = loop.args
        loop.args = (operands, [[operands[0][0]]])
        return True

    compilation = traced()
    pipeline.finish(compilation, "native", ())
    with pytest.raises(VerificationError, match="reads sin after loop0 overwrote it"):
        pipeline.run_passes(compilation, (write,))


def test_without_the_word_nothing_is_verified(monkeypatch):
    monkeypatch.delenv("FUNCNETS_DEBUG")
    compilation = traced()

    def change(compilation):
        says_another_shape(compilation)
        return True

    pipeline.run_passes(compilation, (change,))
    assert compilation.after_pass is None


def test_the_graph_is_printed_after_each_pass(monkeypatch, capsys):
    monkeypatch.setenv("FUNCNETS_DEBUG", "1, jit")
    funcnets.jit(function, backend="graph")(torch.ones(4, 4), torch.ones(4, 4))
    printed = capsys.readouterr().err
    names = [line.split()[-1] for line in printed.splitlines() if line.startswith("# jit: after")]
    passes = (*pipeline.CLEANING, *pipeline.FUSION, *pipeline.BACKEND_PASSES["graph"])
    assert names == [each.__name__ for each in passes]
    assert "torch.ops.aten.relu_" in printed


@pytest.mark.parametrize(
    ("name", "precision"),
    [("lenet_bn", "bfloat16"), pytest.param("densenet", "float32", marks=pytest.mark.slow)],
)
def test_the_passes_of_each_back_end_are_right(name, precision):
    network = NETWORKS[name]
    net, optimizer = network.layer(), optim.sgd(0.1, momentum=0.9)
    x = random.normal(random.key(1), network.shape)
    train_state = train.create(net, optimizer, random.key(0), x)
    step = train.make_train_step(net, optimizer, policy=POLICIES[precision])
    leaves, structure = take_apart((train_state, (x, torch.arange(len(x)))))
    for backend in pipeline.BACKEND_PASSES:
        compilation = pipeline.trace(lambda *given: step(*structure.fill(given)), leaves, DEFAULT)
        pipeline.finish(compilation, backend, range(len(leaves) - 2))
        assert len(compilation.aliases) == len(leaves) - 2
