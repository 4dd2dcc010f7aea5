"""The benchmark: what it times, in which order, what it prints and refuses; no time is asserted."""

import json
import os
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

import funcnets
from funcnets import bench, data, layers, models, random, summary, tree
from funcnets.bench import (
    contenders,
    epoch,
    flax_models,
    isolated,
    rewrites,
    rule_timings,
    throughput,
)
from funcnets.bench.cases import Case
from funcnets.bench.contenders import COLUMNS, MODULES
from funcnets.cli import commands
from funcnets.compiler.loops.lower import fuse_loops
from funcnets.compiler.lowerings import bfloat16
from funcnets.models import Entry, Recipe
from funcnets.precision import POLICIES
from funcnets.testing import twins

LENET = Case("lenet_bn", 4, 28)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["funcnets", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setattr(throughput, "SMALLEST_SIDE", 8)
    monkeypatch.setattr(throughput, "LARGEST_SIDE", 16)


def tiny_net():
    conv = layers.conv2d(3, 3, padding=1)
    return funcnets.sequential(
        conv1=conv, conv2=conv, flatten=layers.flatten(), fc=layers.linear(10)
    )


RECIPES = dict.fromkeys(("tuned", "reference"), Recipe(0.1, 4, 2))


def tiny_twin(name):
    convolutions = (nn.Conv2d(channels, 3, 3, padding=1) for channels in (1, 3))
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(12, 10))


@pytest.fixture
def tiny(monkeypatch):
    """A network and a twin that start quickly; its convolutions are lowered."""
    monkeypatch.setitem(models.INDEX, "tiny", Entry(tiny_net, RECIPES))
    monkeypatch.setattr(twins, "get", tiny_twin)
    return Case("tiny", 4, 2)


def objects(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_row_for_each_precision_and_column(run, tiny):
    code, out, err = run("tiny", "--rounds", 2, "--only", "eager,graph,eager-last", "--json")
    assert code == 0
    machine, *rows = objects(out)
    assert machine["kind"] == "Machine"
    assert {"torch", "cpu_capability", "threads"} <= machine.keys()
    assert [(row["precision"], row["column"]) for row in rows] == [
        (precision, column)
        for precision in ("float32", "bfloat16")
        for column in ("graph", "eager", "eager-last")
    ]
    assert err.count("first step after") == 6
    multiply_adds = summary.summarize(tiny_net(), (4, 1, 2, 2), depth=0)[-1].multiply_adds
    for row in rows:
        assert (row["kind"], row["network"], row["rounds"]) == ("Timing", "tiny", 2)
        assert 0 < row["median"] <= row["best"]
        assert min(row["first_step"], row["gflops"], row["matmul_gflops"], row["ratio"]) > 0
        operations = 6 * multiply_adds * row["median"] / 4
        assert row["gflops"] == pytest.approx(operations / 1e9)
        peers = [
            other["median"]
            for other in rows
            if other["precision"] == row["precision"] and other["column"] != "graph"
        ]
        assert row["ratio"] == pytest.approx(row["median"] / max(peers))


def fake_columns(monkeypatch, calls):
    def column(name):
        return lambda case, precision: lambda: calls.append((precision, name))

    for name in ("jit", "eager"):
        monkeypatch.setitem(COLUMNS, name, column(name))


def test_tf32_is_measured_like_other_precisions(run, tiny, monkeypatch):
    """As on a GPU, whose precisions have a TF32; a CPU computes it in float32."""
    monkeypatch.setattr("funcnets.precision.available", lambda device: tuple(POLICIES))
    options = ("--precision", "tf32,float32", "--only", "graph,eager", "--rounds", 1, "--json")
    code, out, err = run("tiny", *options)
    assert code == 0, err
    rows = objects(out)[1:]
    assert [row["precision"] for row in rows] == ["float32"] * 2 + ["tf32"] * 2
    assert all(row["matmul_gflops"] > 0 for row in rows)


def test_steps_take_turns(monkeypatch):
    calls, told = [], []
    fake_columns(monkeypatch, calls)
    timings = throughput.time_steps(
        LENET, ["jit", "eager"], ["float32", "bfloat16"], rounds=3, report=told.append
    )
    turn = [(precision, name) for precision in ("float32", "bfloat16") for name in ("jit", "eager")]
    assert calls[:8] == [each for each in turn for _ in range(2)]
    rounds = [sorted(calls[i : i + 4]) for i in (8, 12, 16)]
    assert (rounds, len(calls)) == ([sorted(turn)] * 3, 20)
    assert len(told) == 4
    assert [timed.rounds for timed in timings] == [3] * 4


def test_the_seconds_end_the_rounds(monkeypatch):
    calls = []
    fake_columns(monkeypatch, calls)
    (timed,) = throughput.time_steps(LENET, ["jit"], ["float32"], rounds=1000, seconds=0)
    assert timed.rounds == 1
    assert timed.ratio is None


def test_means_over_networks_are_geometric(monkeypatch):
    fake_columns(monkeypatch, [])
    (timed,) = throughput.time_steps(LENET, ["jit"], ["float32"], rounds=1)
    timings = [timed._replace(ratio=ratio) for ratio in (1.0, 4.0, None)]
    assert throughput.means(timings) == [
        throughput.Mean("float32", "jit", 2, pytest.approx(2.0), 1.0)
    ]


def test_several_networks_end_with_the_means(run, monkeypatch):
    fake_columns(monkeypatch, [])
    names = ("nin", "lenet_bn")
    code, out, _ = run(*names, "--only", "jit,eager", "--rounds", 1, "--json")
    assert code == 0
    kinds = [row["kind"] for row in objects(out)]
    assert kinds == ["Machine", *["Timing"] * 8, *["Mean"] * 4]
    code, out, _ = run(*names, "--only", "jit,eager", "--rounds", 1)
    assert code == 0
    assert "network nin, batch size 128, side 224 pixels, rounds 1" in " ".join(out.split())


def test_all_networks_are_at_their_recipes_sizes():
    cases = bench.cases(["all"])
    assert [case.network for case in cases] == [
        name for name, entry in models.INDEX.items() if entry.is_benchmarked
    ]
    assert cases[0] == Case("alexnet", 128, 224)
    assert bench.cases(["nin"], 3, 100, "meta") == (Case("nin", 3, 100, "meta"),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["renset18"], "did you mean 'resnet18'"),
        (["--only", "jit,fast"], "--only has 'fast'; known are jit, graph, inductor, eager"),
        (["--precision", "half"], "--precision has 'half'; known are float32, bfloat16"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--side", "-1"], "--side is -1"),
        (["--seconds", "-1"], "--seconds is -1"),
        (["--workers", "-1"], "--workers is -1"),
        (["--device", "gpu"], "--device is 'gpu', which can't be used here"),
        (["--device", "meta"], "--device is 'meta', which can't be used here"),
        (
            ["--epoch", "--limit-train", "20000", "--data", "bundled"],
            "limit of 20000 training images",
        ),
        (["--only", "flax"], "pip install 'funcnets[bench-jax]'"),
        (["alexnet", "--side", "9", "--only", "graph", "--rounds", "1"], "pool1"),
        (["--epoch", "--data", "nowhere", "--only", "graph"], "nowhere"),
        (["--processes", "1,two"], "--processes is '1,two'; expected whole numbers from 1 on"),
        (["--processes", "0"], "--processes is '0'; expected whole numbers from 1 on"),
        (["--processes", "1,9", "--batch-size", "8"], "--processes has 9, more than the 8 images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(run, monkeypatch, arguments, message):
    monkeypatch.setattr(flax_models, "is_installed", lambda: False)
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_flax_is_left_out_where_it_is_not_installed(monkeypatch):
    assert "flax" in bench.columns()
    cases = [(False, "lenet_bn", 7), (True, "nin", 7), (True, "resnet18", 8)]
    for installed, network, found in cases:
        monkeypatch.setattr(flax_models, "is_installed", lambda installed=installed: installed)
        assert len(contenders.available_columns(bench.columns(), network)) == found


@pytest.mark.parametrize(
    ("network", "precision"),
    [("lenet_bn", "float32"), ("lenet_bn", "bfloat16"), ("resnet18", "float32")],
)
def test_flax_has_the_same_parameters(network, precision):
    pytest.importorskip("flax")
    step = flax_models.step(Case(network, 4, 28), precision)
    step()
    net, _ = models.get(network)
    expected = summary.summarize(net, (1, 1, 28, 28), depth=0)[-1].parameters
    import jax

    params = step.__closure__[step.__code__.co_freevars.index("params")].cell_contents
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("column", [*MODULES, "jit"])
def test_every_column_steps(column, monkeypatch, tiny):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for precision in ("float32", "bfloat16"):
        step = COLUMNS[column](tiny, precision)
        first, second = step(), step()
        assert first > 0
        assert second > 0
        assert second != first  # it trains


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own():
    cost = isolated.measure_process(LENET._replace(batch_size=200), "eager", "float32")
    assert cost.first_step > 0
    assert 10**7 < cost.idle < cost.compiling
    # The first convolution alone gives 200 · 6 · 24 · 24 numbers, and they are kept.
    assert cost.stepping - cost.idle > 4 * 200 * 6 * 24 * 24


@pytest.mark.parametrize(
    ("printed", "message"),
    [("Traceback …\nValueError: conv2: too small", "ValueError: conv2: too small"), ("", "killed")],
)
def test_a_process_that_fails_says_what_failed(tmp_path, monkeypatch, printed, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '{printed}' >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=f"eager, float32: the step failed: .*{message}"):
        isolated.measure_process(LENET, "eager", "float32")


def test_filling_caches_ends_in_time(tmp_path, monkeypatch):
    """Also with a process that is being waited for, and without those that didn't begin."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho >> begun\nexec sleep 20\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    isolated.fill_caches([(LENET, "eager", "float32")] * 3, 0.5)
    assert time.monotonic() - started < 10
    assert Path("begun").read_text(encoding="utf-8") == "\n"


def test_memory_and_first_steps_have_rows(run, monkeypatch):
    numbers, caches = count(1), []

    def cost(case, column, precision, cache=None):
        if cache is not None:
            caches.append((cache, [path.name for path in Path(cache).iterdir()]))
            Path(cache, "kernel").touch()
        number = next(numbers)
        return isolated.ProcessCost(float(number), 0, 0, 10**6 * number)

    monkeypatch.setattr(isolated, "measure_process", cost)
    options = ("--only", "graph,eager", "--precision", "float32", "--json")
    code, out, _ = run("--memory", "--first-step", *options)
    assert code == 0
    _, *first, graph, eager = objects(out)
    assert [(row["kind"], row["cold"], row["warm"]) for row in first] == [
        ("FirstStep", 1, 2),
        ("FirstStep", 3, 4),
    ]
    assert [found for _, found in caches] == [[], ["kernel"]] * 2
    assert caches[0][0] == caches[1][0] != caches[2][0]
    assert not Path(caches[0][0]).exists()
    assert (graph["kind"], graph["stepping"], graph["ratio"]) == ("Memory", 5.0, 5 / 6)
    assert (eager["stepping"], eager["ratio"]) == (6.0, 1.0)


def test_lowerings_are_timed_on_the_calls_that_a_network_makes(run, tiny, monkeypatch):
    monkeypatch.setattr(
        bfloat16, "has_bfloat16", lambda: True
    )  # the same rules for both precisions
    found = rewrites.find_rewrites(tiny, "float32")
    assert [(rewrite.name, calls) for rewrite, calls in found[:4]] == [
        ("layout.forward", 1),
        ("layout.forward", 1),
        ("layout.backward", 1),
        ("layout.backward", 1),
    ]
    assert {"fusion.multiply_add", "loops"} == {rewrite.name for rewrite, _ in found[4:]}
    code, out, err = run("tiny", "--lowerings", "--only", "graph", "--rounds", 2, "--json")
    assert code == 0
    rows = objects(out)[1:]
    layouts = [row for row in rows if row["lowering"].startswith("layout")]
    assert layouts[0]["shapes"] == "4×1×2×2, 3×1×3×3, 3"
    assert [row["precision"] for row in layouts] == ["float32"] * 4 + ["bfloat16"] * 4
    for row in rows:
        assert row["lowering"] != "loops"  # which a graph has none of
        assert row["ratio"] == pytest.approx(row["operation_ms"] / row["rewrite_ms"])
    monkeypatch.setattr(rule_timings, "find_rewrites", lambda *arguments: [])
    code, _, err = run("tiny", "--lowerings", "--only", "graph")
    assert (code, err.count("no lowering applies")) == (0, 2)


def test_each_way_to_rewrite_has_its_row(run, tiny, monkeypatch):
    net = funcnets.sequential(
        conv=layers.conv2d(8, 3, padding=1),
        bn=layers.batch_norm(),
        relu=layers.relu(),
        pool=layers.max_pool(2),
        flatten=layers.flatten(),
        fc=layers.linear(10),
    )
    monkeypatch.setitem(models.INDEX, "tiny", Entry(lambda: net, RECIPES))
    looped = []

    def fuse(compilation):
        looped.append(fuse_loops(compilation))
        return looped[-1]

    passes = tuple(fuse if each is fuse_loops else each for each in rule_timings.LOOPS)
    monkeypatch.setattr(rule_timings, "LOOPS", passes)
    arguments = ("--lowerings", "--only", "jit,graph", "--rounds", 1, "--side", 6, "--json")
    code, out, _ = run("tiny", *arguments)
    assert code == 0
    assert any(looped)
    rows = objects(out)[1:]
    names = {(row["lowering"], row["column"], row["precision"]) for row in rows}
    for precision in ("float32", "bfloat16"):
        for column in ("jit", "graph"):
            for name in ("moments.var_mean", "fusion.max_pool", "fusion.channel_sums"):
                assert (name, column, precision) in names
        assert ("loops", "jit", precision) in names
        assert ("loops", "graph", precision) not in names
    scaled = [column for name, column, _ in names if name == "fusion.scaled"]
    assert scaled == ["graph"]


def test_equal_calls_are_timed_once_and_counted(monkeypatch, tiny):
    conv = layers.conv2d(1, 3, padding=1)
    net = funcnets.sequential(a=conv, b=conv, flatten=layers.flatten(), fc=layers.linear(10))
    monkeypatch.setitem(models.INDEX, "tiny", Entry(lambda: net, RECIPES))
    rewrite, calls = rewrites.find_rewrites(tiny, "float32")[0]
    assert (rewrite.name, calls) == ("layout.forward", 2)


def test_an_epoch_against_the_usual_loop(run, tiny):
    sizes = ("--limit-train", 20, "--batch-size", 8, "--rounds", 1, "--workers", 0)
    code, out, _ = run("tiny", "--epoch", "--data", "bundled", "--only", "graph", *sizes, "--json")
    assert code == 0
    rows = objects(out)[1:]
    assert [(row["precision"], row["loop"]) for row in rows] == [
        ("float32", "DataLoader"),
        ("float32", "funcnets"),
        ("bfloat16", "funcnets"),
    ]
    assert rows[0]["ratio"] == 1.0
    for row in rows:
        assert row["images"] == 20
        assert row["examples_per_second"] == pytest.approx(20 / row["seconds"])
        assert row["ratio"] == pytest.approx(rows[0]["seconds"] / row["seconds"])


def test_both_loops_see_the_same_images():
    dataset = data.limit(data.load("bundled"), 3)
    images = epoch.Images(dataset, 40)
    usual = torch.stack([images[index][0] for index in range(len(images))])
    ours = data.prepare(dataset.train_images, 40)
    assert (usual - ours).abs().max() <= 1.01 / 255
    assert [label for _, label in images] == dataset.train_labels.tolist()


@pytest.mark.processes
def test_processes_are_timed_with_what_they_send(run):
    arguments = ("--batch-size", 6, "--processes", "1,2", "--rounds", 1, "--only", "graph")
    code, out, _ = run(*arguments, "--precision", "float32", "--json")
    assert code == 0
    one, two = (row for row in objects(out) if row["kind"] == "Scaling")
    assert [row["processes"] for row in (one, two)] == [1, 2]
    assert (one["collectives"], one["sent"], one["ratio"]) == (0, 0.0, 1.0)
    net, _ = models.get("lenet_bn")
    params, state = net.init(random.key(0), torch.zeros(2, 1, 28, 28))
    count = sum(leaf.numel() for leaf in tree.leaves(params))
    assert two["gradients_sent"] == pytest.approx(4e-6 * (count + 3))  # loss, correct, examples
    # A batch norm sends mean, variance and count of each channel for both processes, twice.
    means = [leaf for name, leaf in tree.flatten_named(state).items() if name.endswith("mean")]
    channels = sum(map(torch.numel, means))
    assert two["collectives"] == 2 * len(means) + 1
    assert two["sent"] == pytest.approx(two["gradients_sent"] + 4e-6 * channels * 3 * 2 * 2)
    assert all(two[name] > 0 for name in ("step", "computation", "communication", "gradients"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("alexnet", "--side", 9, "--processes", 2),
        ("alexnet", "--side", 9, "--memory"),
        ("--batch-size", 1, "--first-step"),
    ],
)
def test_a_batch_that_is_too_small_is_refused_before_processes_begin(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("funcnets: ")
    assert len(err.splitlines()) == 1
    assert "can't be trained at --side" in err


@pytest.mark.processes
def test_a_process_that_is_timed_and_fails_says_so_in_one_line(run, monkeypatch):
    monkeypatch.setattr("funcnets.bench._check_is_trainable", lambda case: None)
    code, _, err = run("alexnet", "--side", 9, "--processes", 2, "--only", "graph")
    assert code == 1
    assert "pool1: max_pool(3, stride=2): its input is 1×1" in err
