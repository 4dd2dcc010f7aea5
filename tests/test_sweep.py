"""`funcnets sweep`: seeds × learning rates trained together, as a person or a script meets it."""

import csv
import json
import signal
import statistics
from pathlib import Path

import pytest
from run_files import final_tensors, rows, untimed

from funcnets import checkpoint
from funcnets.cli import reporters, sweep
from funcnets.runs import steps_done
from funcnets.transforms import ensemble

SMALL = ["--limit-train", "96", "--batch-size", "32", "--backend", "graph", "--data", "bundled"]
SMALLEST = ["lenet_bn", *SMALL, "--epochs", "1", "--run", "sweep"]


pytestmark = pytest.mark.usefixtures("own_directory", "few_test_images")
by_vmap = pytest.mark.usefixtures("known_strategy")


def test_a_sweep_leaves_a_record_and_a_table(run):
    code, out, err = run("sweep", *SMALLEST, "--seeds", 2, "--lr", "0.1,1e39", "--epochs", 2)
    assert (code, err) == (0, "")
    assert out.isascii()
    found = rows("sweep")
    assert [row["epoch"] for row in found] == [1] * 7 + [2] * 7
    last = found[7:]
    assert [(row["seed"], row["learning_rate"]) for row in last] == [
        *((0, 0.1), (1, 0.1), (0, 1e39), (1, 1e39)),
        *((None, 0.1), (None, 1e39), (None, None)),
    ]
    assert [row["diverged"] for row in last] == [False] * 2 + [True] * 2 + [False, True, False]
    # Those that diverged are left out of the ensemble of them all.
    assert last[6]["test_loss"] == last[4]["test_loss"] < last[0]["test_loss"]
    with Path("sweep/metrics.csv").open() as file:
        assert [row["test_accuracy"] for row in csv.DictReader(file)] == [
            str(row["test_accuracy"]) for row in found
        ]
    lines = out.splitlines()
    assert "epoch 2/2" in out
    assert sum(line.endswith("diverged") for line in lines) == 3
    median = statistics.median(row["test_accuracy"] for row in last[:2])
    assert f"best rate by median test accuracy over seeds: 0.1 ({median:.4f})" in lines
    config = json.loads(Path("sweep/config.json").read_text())
    assert (config["seeds"], config["rates"]) == (2, [0.1, 1e39])
    saved, metadata = checkpoint.load(checkpoint.latest("sweep/checkpoints"))
    assert saved["step"].tolist() == [6] * 4
    assert metadata["epoch"] == 2
    assert saved["opt_state"]["rate"].tolist() == [0.1, 0.1, 1e39, 1e39]


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_the_first_member_is_what_train_trains(run, monkeypatch, way):
    monkeypatch.setattr(ensemble, "choose_strategy", lambda *arguments, **options: way)
    run("sweep", *SMALLEST, "--seeds", 2, "--recipe", "reference", "--lr", 0.5)
    alone = ("--recipe", "reference", "--lr", 0.5, "--run", "alone")
    run("train", *SMALLEST, *alone)
    (expected,) = rows("alone")
    for name in ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert rows("sweep")[0][name] == pytest.approx(expected[name], abs=1e-4)


@by_vmap
def test_json_is_all_that_json_prints(run):
    code, out, _ = run("sweep", *SMALLEST, "--seeds", 1, "--json")
    printed = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line.get("seed") for line in printed] == [0, None, None, None]
    assert printed[-1]["event"] == "finished"
    assert printed[-1]["best_rate"] == 1.0
    assert printed[-1]["ensemble_test_accuracy"] == printed[0]["test_accuracy"]


@by_vmap
def test_a_sweep_of_which_no_member_is_finite_fails(run):
    code, _, err = run("sweep", *SMALLEST, "--seeds", 2, "--lr", 1e39)
    assert code == 1
    assert "no member has a finite loss" in err
    assert len(err.splitlines()) == 1


@by_vmap
def test_a_sweep_is_evaluated_member_by_member_and_as_an_ensemble(run):
    run("sweep", *SMALLEST, "--seeds", 2, "--lr", "0.1,1e39")
    code, out, _ = run("eval", "sweep", "--json")
    assert code == 0
    measured = json.loads(out)
    assert (measured["step"], measured["test_images"], len(measured["members"])) == (3, 100, 7)
    for member, row in zip(measured["members"], rows("sweep"), strict=True):
        assert {name: row[name] for name in member} == member
    assert measured["test_accuracy"] == rows("sweep")[-1]["test_accuracy"]
    code, out, _ = run("eval", "sweep")
    assert sum(line.endswith("diverged") for line in out.splitlines()) == 3
    assert f"accuracy {measured['test_accuracy']:.4f} over 100 images" in out


@by_vmap
def test_train_and_sweep_resume_their_own_kind(run):
    run("sweep", *SMALLEST, "--seeds", 1)
    code, _, err = run("train", "--run", "sweep", "--resume")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "holds a sweep; go on with it by `funcnets sweep --run-dir sweep --resume`" in err
    code, _, err = run("sweep", "--run", "sweep", "--resume", "--seeds", 2)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--seeds is 2, but the run was started with 1" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet"], "did you mean 'lenet_bn'"),
        (["lenet_bn", "--seeds", "0"], "--seeds is 0"),
        (["lenet_bn", "--lr", "fast"], "--lr is 'fast'"),
        (["lenet_bn", "--lr", "0.1,-1"], "--lr is -1"),
        (["lenet_bn", "--lr", "0.1,0.1"], "expected different learning rates"),
        (["lenet_bn", "--lr", ""], "--lr is ''"),
        (["alexnet", "--side", "30"], "the smallest --side that works is 65"),
        (["lenet_bn", "--backend", "fast"], "--backend is 'fast'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, message):
    code, _, err = run("sweep", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


@by_vmap
def test_a_signal_saves_the_sweep_and_it_goes_on_to_the_same_bits(run, monkeypatch):
    """The second run is stopped in its evaluation, the third in an epoch."""
    options = [*SMALLEST, "--seeds", 2, "--lr", "0.1,1e39", "--epochs", 2]
    run("sweep", *options, "--run", "whole")
    evaluate = sweep.MemberEvaluation.__call__
    seen = []

    def evaluate_and_stop(self, train_state):
        signal.raise_signal(signal.SIGINT)
        return evaluate(self, train_state)

    def stop_after_step_5(self, progress, examples_per_second):
        if steps_done(progress.train_state) == 5:
            seen.append(progress)
            signal.raise_signal(signal.SIGTERM)

    resume = ["sweep", "--resume", "--run", "sweep"]
    with monkeypatch.context() as patch:
        patch.setattr(sweep.MemberEvaluation, "__call__", evaluate_and_stop)
        code, out, err = run("sweep", *options)
    assert (code, err) == (130, "")
    assert "interrupted by SIGINT, saved at step 3" in out
    assert "to go on: funcnets sweep --run-dir sweep --resume" in out
    assert not Path("sweep/metrics.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr(reporters.PlainLines, "advance", stop_after_step_5)
        code, out, err = run(*resume)
    assert (code, err, len(seen)) == (143, "", 1)
    assert "saved at step 5" in out
    assert run(*resume)[0] == 0
    assert untimed("sweep") == untimed("whole")
    assert str(final_tensors("sweep")) == str(final_tensors("whole"))  # NaNs among them
