"""What a training writes while it goes on: rows of steps, and TensorBoard's event files."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_files import SMALL, final_tensors, rows, untimed

from funcnets import _files
from funcnets.cli import preparation
from funcnets.cli.cadence import Cadence
from funcnets.cli.compiled_step import Taken
from funcnets.cli.metrics_log import MetricsLog
from funcnets.cli.reporters import Reporter
from funcnets.cli.training import Training
from funcnets.runs import RunDirectory, StepRow

pytestmark = pytest.mark.usefixtures("few_test_images")
TIMES = {"examples_per_second", "data_seconds", "step_seconds"}


class Killed(BaseException):
    """The process ends here, with nothing tidied up."""


def without_times(path):
    return [
        {k: v for k, v in row._asdict().items() if k not in TIMES and v is not None}
        for row in RunDirectory(path).read_step_rows()
    ]


def is_timed(tag):
    return "second" in tag


def events(path):
    """Return (step, tag, value) of each event in a directory, in the order of the files."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    files = sorted(Path(path).glob("events.*"))
    found = [event for file in files for event in loader.LegacyEventFileLoader(str(file)).Load()]
    return [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]


def test_every_second_step_is_a_row_and_training_stays_the_same(run):
    assert run("train", "--epochs", 2, "--run", "plain", *SMALL)[0] == 0
    code, _, err = run("train", "--epochs", 2, "--run", "logged", "--log-every", 2, *SMALL)
    assert (code, err) == (0, "")
    assert final_tensors("logged") == final_tensors("plain")
    logged = RunDirectory("logged").read_step_rows()
    assert [(row.step, row.epoch) for row in logged] == [(2, 1), (4, 2), (6, 2)]
    assert [row.learning_rate for row in logged] == pytest.approx([5 / 6, 3 / 6, 1 / 6])
    assert all(row.gradient_norm > 0 for row in logged)
    assert logged[-1].step_seconds > 0 < logged[-1].examples_per_second
    with Path("logged/steps.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row.loss for row in logged]
    assert not Path("plain/steps.jsonl").exists()
    (plain, *_), (_, last) = rows("plain"), rows("logged")
    assert plain["gradient_norm"] > 0
    assert last["gradient_norm"] == logged[-1].gradient_norm
    assert last["learning_rate"] == logged[-1].learning_rate
    for row in (plain, last):
        assert row["step_seconds"] + row["data_seconds"] + row["evaluation_seconds"] > 0
        assert row["step_seconds"] + row["evaluation_seconds"] < row["seconds"]


GIVEN = {
    "network": "lenet_bn",
    "batch_size": 32,
    "limit_train": 96,
    "epochs": 3,
    "data": "bundled",
    "backend": "graph",
    "device": "cpu",
}


class Killing(Reporter):
    def __init__(self, step=None):
        self.step = step

    def advance(self, progress, examples_per_second):
        if progress.step == self.step:
            raise Killed


@pytest.mark.usefixtures("own_directory")
def test_after_a_kill_each_step_is_there_once():
    def train(path, start, killed_after=None):
        setup = start({} if start is preparation.resume else GIVEN, Path(path))
        reporter, cadence = Killing(killed_after), Cadence(2)
        how = {"cadence": cadence, "log_every": 1, "tensorboard": True}
        try:
            Training(setup, reporter, **how).run()
        finally:
            setup.directory.release()

    train("whole", preparation.begin)
    with pytest.raises(Killed):
        train("parts", preparation.begin, killed_after=7)
    assert [row["step"] for row in without_times("parts")] == [1, 2, 3, 4, 5, 6]
    with Path("parts/steps.jsonl").open("a") as file:
        file.write('{"step": 7, "epo')  # was cut off
    (old,) = Path("parts/tensorboard").iterdir()
    kept = old.read_bytes()
    with pytest.raises(Killed):
        train("parts", preparation.resume, killed_after=8)
    Path("parts/tensorboard", old.name).write_bytes(kept)  # as if killed before it was removed
    train("parts", preparation.resume)
    assert without_times("parts") == without_times("whole")
    assert len(without_times("whole")) == 9
    assert untimed("parts") == untimed("whole")
    parts, whole = (
        [event for event in events(f"{name}/tensorboard") if not is_timed(event[1])]
        for name in ("parts", "whole")
    )
    assert parts == whole  # in one order too


@pytest.mark.usefixtures("known_strategy")
def test_a_sweep_has_rows_of_steps_and_events_of_each_member(run):
    options = ("--seeds", 2, "--lr", "0.1,0.5", "--epochs", 1, "--run", "many", *SMALL)
    assert run("sweep", "--tensorboard", "--log-every", 2, *options)[0] == 0
    parts = {path.name for path in Path("many/tensorboard").iterdir()}
    assert {"rate 0.1, seed 1", "rate 0.5, ensemble", "all rates, ensemble"} < parts
    known = {tag: value for _, tag, value in events("many/tensorboard/rate 0.1, seed 1")}
    (row,) = (r for r in rows("many") if (r["seed"], r["learning_rate"]) == (1, 0.1))
    assert known["epoch/test_accuracy"] == pytest.approx(row["test_accuracy"])
    logged = RunDirectory("many").read_step_rows()
    assert [(r.step, r.base_rate, r.seed) for r in logged] == [
        (2, rate, seed) for rate in (0.1, 0.5) for seed in (0, 1)
    ]
    assert [r.learning_rate / r.base_rate for r in logged] == pytest.approx([2 / 3] * 4)
    assert len({r.loss for r in logged}) == len({r.gradient_norm for r in logged}) == 4
    assert known["step/gradient_norm"] == pytest.approx(logged[1].gradient_norm)
    *members, _, _, whole = rows("many")
    assert all(row["gradient_norm"] > 0 for row in members)
    assert whole["gradient_norm"] is None
    assert all(r["step_seconds"] + r["evaluation_seconds"] < r["seconds"] for r in rows("many"))


@pytest.mark.usefixtures("known_strategy")
def test_a_member_of_a_sweep_has_the_rows_of_its_own_training(run):
    options = ("--epochs", 1, "--log-every", 1, *SMALL)
    assert run("sweep", "--seeds", 1, "--lr", "0.5,1e39", "--run", "many", *options)[0] == 0
    assert run("train", "--lr", 0.5, "--run", "alone", *options)[0] == 0
    many = [row for row in without_times("many") if row["base_rate"] == 0.5]
    for member, row in zip(many, without_times("alone"), strict=True):
        assert member == pytest.approx({**row, "base_rate": 0.5, "seed": 0}, rel=1e-3)
    assert "loss" not in without_times("many")[-1]  # of the member that diverged


def test_epochs_are_scalars_by_the_number_of_steps(run):
    assert run("train", "--epochs", 2, "--run", "mine", "--tensorboard", *SMALL)[0] == 0
    found = {(step, tag): value for step, tag, value in events("mine/tensorboard")}
    for row in rows("mine"):
        assert found[row["step"], "epoch/test_loss"] == pytest.approx(row["test_loss"])
    assert (1, "step/loss") not in found


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_without_tensorboard_a_line_names_the_extra(run, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, out, err = run(command, "--tensorboard", *SMALL)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "pip install 'funcnets[tensorboard]'" in err
    assert not Path("runs").exists()


def test_a_wrong_number_of_steps_is_one_line(run):
    code, _, err = run("train", "--log-every", 0)
    assert (code, err) == (2, "funcnets: --log-every is 0; expected 1 or more\n")


class Unreadable:
    def numel(self):
        return 1

    def reshape(self, *shape):
        raise AssertionError("the log waited for the device")


def test_nothing_is_read_before_the_loop_reads(tmp_path):
    written = []
    directory = SimpleNamespace(path=tmp_path, add_step_rows=written.extend)
    log = MetricsLog(directory, 2, lambda step: [0.5])
    waiting, read = SimpleNamespace(unread=1), SimpleNamespace(unread=0)
    taken = Taken(1, 10, 0.25, 0.75)
    measured = {"loss": Unreadable(), "gradient_norm": Unreadable()}
    for step in range(1, 6):
        progress = SimpleNamespace(step=step, epoch=0, averages=waiting)
        log.step(progress, measured, None if step == 1 else taken)
    measured["loss"], measured["gradient_norm"] = torch.tensor(2.0), torch.tensor(torch.inf)
    log.step(SimpleNamespace(step=6, epoch=0, averages=read), measured, taken)
    assert [row.step for row in written] == [2, 4, 6]
    assert written[0] == StepRow(2, 1, 2.0, 0.5, None, 10.0, 0.25, 0.75)


def test_steps_of_one_call_have_rows_of_their_own(run):
    options = ("--epochs", 2, "--log-every", 1, *SMALL)
    assert run("train", "--run", "single", *options)[0] == 0
    assert run("train", "--run", "calls", "--steps-per-call", 2, *options)[0] == 0
    single, calls = without_times("single"), without_times("calls")
    assert len(calls) == 6
    for ours, theirs in zip(calls, single, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert rows("calls")[-1]["gradient_norm"] == calls[-1]["gradient_norm"]


def test_rows_before_a_divergence_are_kept(run):
    code, _, err = run("train", "--lr", 1e30, "--run", "wild", "--log-every", 1, *SMALL)
    assert (code, len(err.splitlines())) == (1, 1)
    (first, *_) = RunDirectory("wild").read_step_rows()
    assert first.step == 1
    assert first.loss > 0


def test_a_full_disk_ends_the_training_with_one_line(run, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files, "append", full)
    code, _, err = run("train", "--epochs", 1, "--run", "mine", "--log-every", 1, *SMALL)
    assert (code, err.count("\n")) == (1, 1)
    assert "mine/steps.jsonl: can't be written (No space left on device)" in err
