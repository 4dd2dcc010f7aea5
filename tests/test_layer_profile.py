"""`funcnets bench --profile`: where a step's time goes, by layer."""

from pathlib import Path

import pytest
import torch

import funcnets
from funcnets import layers, models, plots
from funcnets.bench import layer_profile
from funcnets.bench.cases import Case
from funcnets.compiler.kernels import build

NET = funcnets.sequential(
    conv1=layers.conv2d(4, 3),
    bn=layers.batch_norm(),
    relu=layers.relu(),
    block=funcnets.residual(
        funcnets.sequential(conv2=layers.conv2d(4, 3, padding=1), relu2=layers.relu()),
    ),
    flatten=layers.flatten(),
    fc=layers.linear(10),
)
BACKENDS = ["graph", *["native"] * build.is_available()]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(
        models.INDEX, "small", models.Entry(lambda: NET, {"tuned": models.Recipe(0.1, 4, side=8)})
    )
    return Case("small", 4, 8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_operations_are_their_layers_own(small, monkeypatch, backend, precision):
    monkeypatch.setattr(layer_profile, "DEFAULT", ())  # convolutions stay what they are
    compilation, _, _, paths = layer_profile._compiled(small, precision, backend)
    assert [path for path in paths if path and path != "block"] == [
        *("conv1", "bn", "relu", "block.conv2", "block.relu2", "flatten", "fc")
    ]
    found = {}
    for node in compilation.graph.nodes:
        if node.op.startswith("call"):
            shares = dict(layer_profile._shares(node))
            assert sum(shares.values()) == pytest.approx(1)
            found.setdefault(str(node.target), []).append([*shares])
    convolutions = {"conv1", "block.conv2"}
    forward, backward = ([(path, way)] for path, way in [("fc", "forward"), ("fc", "backward")])
    for name, way in (("convolution", "forward"), ("convolution_backward", "backward")):
        origins = found[f"aten.{name}.default"]
        assert sorted(origins) == sorted([(path, way)] for path in convolutions)
    assert found["aten.addmm.default"] == [forward]
    assert found["aten.mm.default"] == [backward, backward]
    every = {origin for origins in found.values() for each in origins for origin in each}
    assert {("bn", "forward"), ("bn", "backward"), ("optimizer", "other")} <= every


def test_the_times_of_layers_add_up(small):
    rows = layer_profile.profile_step(small, "float32", "graph", 2)
    *parts, every, whole = rows
    assert (every.layer, whole.layer) == (layer_profile.ALL, layer_profile.WHOLE)
    assert sum(row.total for row in parts) == pytest.approx(every.total)
    assert sum(row.share for row in parts) == pytest.approx(100)
    assert {"conv1", "bn", "relu", "block.conv2", "fc"} <= {row.layer for row in parts}
    for row in parts:
        passes = [each for each in (row.forward, row.backward) if each is not None]
        assert not passes or sum(passes) == pytest.approx(row.total)
    assert whole.total > 0


def test_other_graphs_have_no_origins(small):
    layer_profile._compiled(small, "float32", "graph")
    trace = funcnets.jit(lambda x: x + 1, backend="graph").trace(torch.ones(2, 2))
    assert all("origin" not in node.meta for node in trace.graph.graph.nodes)


def test_the_command_prints_a_table_and_draws_a_picture(run):
    short = ("--batch-size", 8, "--rounds", 1, "--only", "graph", "--precision", "float32")
    arguments = ("bench", "lenet_bn", *short, "--profile")
    code, out, err = run(*arguments, "--picture", "pictures/profile.svg")
    assert code == 0
    assert "timed graph, by operation" in " ".join(out.split())
    assert "forward (ms)" in out
    assert err.splitlines()[-1] == "pictures/profile.svg"
    assert Path("pictures/profile.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--picture", "a.png"), "--picture is for --profile"),
        (("--profile", "--picture", "a.pdf"), "--picture is 'a.pdf'; expected a name that ends"),
        (("nin", "lenet_bn", "--profile", "--picture", "a.png"), "give one network, and one"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run, arguments, message):
    code, _, err = run("bench", *arguments, "--precision", "float32")
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err


def test_of_many_layers_the_longest_are_drawn():
    bars = [plots.LayerBar(f"conv{i}", float(i), 0.0, float(i)) for i in range(100)]
    axes = plots.draw_profile(bars, "many $").axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [*(f"conv{i}" for i in range(60, 100)), "60 more"]
