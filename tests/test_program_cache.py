"""A saved program does what the traced one does, and is taken for nothing else."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import funcnets
from funcnets import data, random
from funcnets.cli import preparation
from funcnets.cli.configuration import configure
from funcnets.compiler import TraceError, disk_cache
from funcnets.compiler.backends import program_cache
from funcnets.compiler.kernels import build
from funcnets.compiler.lowerings import DEFAULT
from funcnets.runs import RunDirectory

BACKENDS = ["graph", "native"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "funcnets"


def programs(cache):
    return sorted(cache.glob("*.program"))


def step(state, x):
    """Has a loop, a result that is no tensor, and an argument to write over."""
    new = {"mean": state["mean"] * 0.9 + x.mean(0) * 0.1, "count": state["count"] + 1}
    return new, ((x * 2).relu() - x, None)


@pytest.fixture
def untraced(monkeypatch):
    """After a call of it nothing is traced any more."""

    def trace(*arguments):
        raise AssertionError("traced again")

    return lambda: monkeypatch.setattr("funcnets.compiler.pipeline.trace", trace)


def arguments(rows=5):
    x = random.normal(random.key(0), (rows, 3), torch.float64)
    return {"mean": x.sum(0), "count": torch.tensor(2)}, x


def refused(function=step, **how):
    """True if the function isn't found as it was saved, but traced."""
    call = funcnets.jit(function, **{"saved_as": "step", "backend": "graph", **how})
    with pytest.raises(AssertionError, match="traced again"):
        call(*arguments())
    return True


@pytest.mark.parametrize("donate", [(), 0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saved_program_is_the_function(untraced, backend, donate):
    how = {"saved_as": "step", "backend": backend, "donate_argnums": donate}
    expected = step(*arguments())
    for _ in range(2):
        state, x = arguments()
        result = funcnets.jit(step, **how)(state, x)
        untraced()
        torch.testing.assert_close(result[0], expected[0])
        torch.testing.assert_close(result[1][0], expected[1][0])
        assert result[1][1] is None
        assert (result[0]["mean"] is state["mean"]) is (donate == 0)


def test_what_differs_is_another_program(cache, untraced):
    funcnets.jit(step, saved_as="step", backend="graph")(*arguments())
    assert len(programs(cache)) == 1
    untraced()
    assert refused(saved_as="other")
    assert refused(saved_as=None)
    assert refused(backend="native")
    assert refused(lowerings=None)
    assert refused(lowerings=DEFAULT[:-1])
    assert refused(donate_argnums=0)
    funcnets.jit(step, saved_as="step", backend="graph")(*arguments())
    with pytest.raises(AssertionError, match="traced again"):
        funcnets.jit(step, saved_as="step", backend="graph")(*arguments(rows=6))
    torch.set_default_dtype(torch.float64)
    try:
        assert refused()
    finally:
        torch.set_default_dtype(torch.float32)


def test_static_arguments_are_told_apart():
    def power(x, exponent):
        return x**exponent

    x = torch.tensor([2.0])
    for exponent in (2, 3):
        call = funcnets.jit(power, static_argnums=1, saved_as="power", backend="graph")
        assert call(x, exponent) == 2**exponent


class Power:
    """Two of these print the same."""

    def __init__(self, exponent):
        self.exponent = exponent

    def __repr__(self):
        return "a power"


def test_what_only_prints_the_same_is_not_saved(cache):
    x = torch.tensor([2.0])
    for power in (Power(2), Power(3)):
        how = {"static_argnums": 1, "saved_as": "power", "backend": "graph"}
        call = funcnets.jit(lambda x, power: x**power.exponent, **how)
        assert call(x, power) == 2**power.exponent
    assert programs(cache) == []


def test_other_versions_are_other_programs(monkeypatch, untraced):
    funcnets.jit(step, saved_as="step", backend="graph")(*arguments())
    untraced()
    monkeypatch.setattr(program_cache, "versions", lambda: "another PyTorch")
    assert refused()


def test_what_captures_a_tensor_is_not_saved(cache):
    offset = torch.ones(3)
    call = funcnets.jit(lambda x: x + offset, saved_as="captures", backend="graph")
    assert call(torch.ones(3)).tolist() == [2, 2, 2]
    assert programs(cache) == []
    offset += 1
    with pytest.raises(TraceError, match="captured"):
        call(torch.ones(3))


def local_class():
    class Local(NamedTuple):
        doubled: Tensor

    return Local


@pytest.mark.parametrize("as_argument", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_of_a_local_class_is_not_saved(cache, backend, as_argument):
    made = local_class()
    how = {"saved_as": "local", "backend": backend}
    call = funcnets.jit(lambda given: made(given[0] * 2), **how)
    x = torch.ones(1, 3)
    assert call(made(x) if as_argument else x).doubled.unique().tolist() == [2]
    assert programs(cache) == []


def test_a_damaged_file_is_written_anew(cache):
    funcnets.jit(step, saved_as="step", backend="graph")(*arguments())
    (path,) = programs(cache)
    whole = path.read_bytes()
    flipped = whole.replace(b"relu", b"rely", 1)
    for damaged in (b"", whole[: len(whole) // 2], b"no program", b"\x80\x04K\x01.", flipped):
        path.write_bytes(damaged)
        result = funcnets.jit(step, saved_as="step", backend="graph")(*arguments())
        torch.testing.assert_close(result[0], step(*arguments())[0])
        assert path.read_bytes() == whole


def test_what_is_whole_but_no_program_is_written_anew(cache, untraced):
    funcnets.jit(step, saved_as="step", backend="graph")(*arguments())
    (path,) = programs(cache)
    key = path.name.split("-")[0]
    for content in (b"[]", b"no JSON", b"{}", b'{"structure": [1, 2]}'):
        path.unlink()
        path = disk_cache.write(key, ".program", content)
        assert program_cache.read(key) is None


def edited(factor):
    names = {}
    exec(f"def function(x):\n    return x * {factor}", names)
    return names["function"]


def scaling(factor):
    return lambda x: x * factor


def calling(inner):
    return lambda x: inner(x) + 1


def test_an_edited_function_is_another_program():
    """Also where the edit is in what it calls, or in a number that it closes over."""
    x = torch.ones(2)
    for factor in (2, 5):
        for function in (edited(factor), scaling(factor), calling(edited(factor))):
            call = funcnets.jit(function, saved_as="step", backend="graph")
            assert torch.equal(call(x), function(x))


def test_an_edited_module_is_another_program(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for factor in (2, 5):
        (tmp_path / "edited_module.py").write_text(f"def scale(x):\n    return x * {factor}\n")
        sys.modules.pop("edited_module", None)
        importlib.invalidate_caches()
        module = importlib.import_module("edited_module")
        os.utime(module.__file__, ns=(factor, factor))
        call = funcnets.jit(calling(module.scale), saved_as="step", backend="graph")
        assert call(torch.ones(1)).item() == factor + 1


def test_no_place_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    disk_cache._private.cache_clear()
    with pytest.warns(UserWarning, match="compiled code isn't kept for later processes"):
        result = funcnets.jit(step, saved_as="step", backend="graph")(*arguments())
    torch.testing.assert_close(result[0], step(*arguments())[0])


def test_loops_that_no_compiler_is_left_for_are_traced_again(monkeypatch, untraced):
    funcnets.jit(step, saved_as="step", backend="native")(*arguments())
    untraced()
    monkeypatch.setattr(build, "load", lambda source: None)
    assert refused(backend="native")


SCRIPT = """
import sys, torch, funcnets
from funcnets import layers, optim, random, train
torch.set_num_threads(1)
net = funcnets.sequential(
    conv=layers.conv2d(2, 3), bn=layers.batch_norm(), flatten=layers.flatten(), fc=layers.linear(3)
)
batch = torch.zeros(4, 1, 6, 6), torch.zeros(4, dtype=torch.long)
optimizer = optim.sgd(0.1)
state = train.create(net, optimizer, random.key(0), batch[0])
step = train.make_train_step(net, optimizer)
step = funcnets.jit(step, donate_argnums=0, saved_as="step", backend="graph")
state, measured = step(state, batch)
loss = measured["loss"].item()
print(loss, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def test_a_new_process_needs_no_tracer(cache):
    """The import of which takes two seconds."""
    first = {}
    exec(SCRIPT, first)
    assert programs(cache)
    command = [sys.executable, "-c", SCRIPT]
    second = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert second == [str(first["loss"]), "False", "False"]


@pytest.mark.parametrize("command", [["train"], ["sweep", "--seeds", "2"]])
def test_a_second_training_traces_nothing(run, untraced, known_strategy, command):
    arguments = [command[0], "lenet_bn", *command[1:], "--epochs", 1, "--limit-train", 128]
    arguments += ["--backend", "graph", "--data", "bundled"]
    assert run(*arguments, "--run", "first")[0] == 0

    untraced()
    assert run(*arguments, "--run", "second")[0] == 0
    first, second = map(losses_of, ("first", "second"))
    assert second == first
    assert None not in first


def losses_of(directory):
    lines = Path(directory, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["test_loss"] for line in lines]


def test_steps_are_named_by_all_that_they_are_made_of():
    dataset = data.load("bundled")
    config = configure({"network": "lenet_bn"})
    changes = {
        "network": "lenet_bn_scratch",
        "schedule": "cosine",
        "learning_rate": 0.25,
        "batch_size": 100,
        "side": 20,
        "epochs": 3,
        "precision": "bfloat16",
    }
    configs = [config, *(replace(config, **{name: value}) for name, value in changes.items())]

    def name(config):
        net, optimizer = preparation.build(config, dataset)
        parts = (dataset, dataset, net, optimizer, None)
        return preparation.Setup(config, RunDirectory("."), *parts).step_name

    assert len(set(map(name, configs))) == len(configs)
    assert name(replace(config, seed=7, device="meta")) == name(config)
