"""A resume finds and names what was changed or lost in a run directory since it was written."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiny_runs import CONFIG, after_step, is_one_line

from funcnets import checkpoint
from funcnets.compiler.kernels import build
from funcnets.runs import Config, RunDirectory


def edit(name, **changes):
    path = Path("mine", name)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"learning_rate": 0.2}, "learning_rate 0.2 (was 0.1)"),
        ({"seed": 1, "side": 8}, "seed 1 (was 0), side 8 (was 6)"),
        ({"limit_train": 64}, "limit_train 64 (was 96)"),
        ({"schedule": "cosine"}, "schedule cosine (was constant), epochs 2 (was None)"),
        ({"precision": "bfloat16"}, "precision bfloat16 (was float32)"),
    ],
    ids=str,
)
def test_a_changed_configuration_is_found(run, train, monkeypatch, changes, listed):
    after_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGTERM))
    train("mine", "--epochs", 2)
    edit("config.json", **changes)
    for command in (("train", "--resume", "--run", "mine"), ("eval", "mine")):
        code, _, err = run(*command)
        assert is_one_line(code, err)
        assert "mine/config.json: isn't the configuration of step-00000002, which was " in err
        assert all(part in err for part in listed.split(", "))


def test_what_a_resume_may_change_is_not_tied(train):
    train("mine", "--epochs", 1, "--schedule", "constant")
    edit("config.json", epochs=2)
    code, _, err = train("mine", "--resume")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("lost", ["all", "first"])
def test_lost_measurements_are_said(train, monkeypatch, lost):
    train("mine", "--epochs", 2, "--schedule", "constant")
    path = Path("mine/metrics.jsonl")
    second = path.read_text().splitlines(keepends=True)[1]
    path.unlink()
    if lost == "first":
        path.write_text(second)
    code, _, err = train("mine", "--resume", "--epochs", 3)
    assert (code, err.count("\n")) == (0, 1)
    what = "2 epochs are gone, from epoch 1 on" if lost == "all" else "epoch 1 are gone"
    assert f"mine/metrics.jsonl: the measurements of {what}" in err


@pytest.mark.parametrize("lost", ["all", "file", "last"])
def test_lost_measurements_of_a_finished_run_are_said(train, lost):
    train("mine", "--epochs", 2, "--schedule", "constant")
    path = Path("mine/metrics.jsonl")
    first = path.read_text().splitlines(keepends=True)[0]
    path.unlink()
    if lost != "file":
        path.write_text(first if lost == "last" else "")
    code, _, err = train("mine", "--resume")
    assert is_one_line(code, err)
    assert "mine: finished with epoch 2 of 2" in err
    what = "epoch 2 are gone" if lost == "last" else "2 epochs are gone, from epoch 1 on"
    assert f"mine/metrics.jsonl: the measurements of {what}" in err


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl"])
@pytest.mark.parametrize("how", ["pipe", "deep", "directory", "list", "number"])
def test_a_file_of_another_kind_is_one_line(train, monkeypatch, name, how):
    RunDirectory.create(Config.from_recipe(**CONFIG), "mine").release()
    path = Path("mine", name)
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    else:
        path.write_text({"deep": "[" * 100_000, "list": "[]", "number": "1" * 10_000}[how])
    started = time.monotonic()
    code, _, err = train("mine", "--resume")
    assert is_one_line(code, err)
    assert f"mine/{name}: " in err or "no run is here" in err
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("kept", [None, [], {"loss_sum": "1", "correct": 0, "count": 0}])
def test_metadata_of_another_form_are_one_line(run, train, kept):
    train("mine", "--epochs", 1)
    path = checkpoint.latest("mine/checkpoints")
    saved, metadata = checkpoint.load(path)
    shutil.rmtree(path)
    RunDirectory(Path("mine")).save(3, saved, metadata | {"running": kept})
    code, _, err = train("mine", "--resume", "--epochs", 2)
    assert is_one_line(code, err)
    assert "step-00000003: the averages in its metadata can't be used" in err


def test_a_resume_says_that_the_kernels_differ(train, monkeypatch):
    """Without a compiler a graph runs without its kernels in C++, to other last digits."""
    with pytest.MonkeyPatch.context() as patch:
        after_step(patch, 1, lambda: signal.raise_signal(signal.SIGTERM))
        train("mine", "--epochs", 1)
    kept = json.loads(Path("mine/environment.json").read_text(encoding="utf-8"))["kernels"]
    assert kept == build.describe()
    monkeypatch.setattr(build, "describe", lambda: "none")
    code, out, err = train("mine", "--resume")
    assert code == 0
    assert f"kernels was {kept} and is none: last digits may differ" in out + err
