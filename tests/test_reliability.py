"""Nothing is lost: one writer a run, output that can't be written, signals, saves, dead ends."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import final_tensors, rows, untimed
from tiny_runs import CONFIG, TINY, after_step, is_one_line

from funcnets import _files, checkpoint, models
from funcnets.cli import evaluation, interrupt, reporters, terminal, training
from funcnets.cli.interrupt import Interrupt
from funcnets.runs import Config, RunDirectory, RunError, best_step, lock

pytestmark = pytest.mark.usefixtures("train")

# One run, one writer

# Runs the file of the lock, as the import of the package would take seconds.
HOLDER = """
import runpy, sys, time
from pathlib import Path
lock = runpy.run_path(sys.argv[2])["Lock"](Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def held(train):
    """A run that another process is writing to; its lock goes with the process, however it ends."""
    assert train("mine", "--epochs", 1)[0] == 0
    command = [sys.executable, "-c", HOLDER, "mine", lock.__file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_run_has_one_writer_until_its_process_ends(train, held):
    before = final_tensors("mine")
    code, _, err = train("mine", "--resume")
    assert is_one_line(code, err)
    assert f"mine: process {held.pid} on {os.uname().nodename} is writing to this run" in err
    run = RunDirectory("mine")
    for write in (lambda: run.write_rows([]), lambda: run.save(9, {}, {}), run.lock):
        with pytest.raises(RunError, match="is writing to this run"):
            write()
    assert final_tensors("mine") == before
    held.kill()
    held.wait()
    assert "finished" in train("mine", "--resume")[2]


def test_evaluation_needs_no_lock(run, held):
    assert run("eval", "mine")[0] == 0


def test_a_directory_is_taken_by_one_of_two(tmp_path):
    config = Config.from_recipe(**CONFIG)
    os.mkdir("new")
    first = RunDirectory("new")
    first.lock()
    with pytest.raises(RunError, match=f"process {os.getpid()} on"):
        RunDirectory.create(config, "new")
    first.release()
    RunDirectory.create(config, "new")


def test_what_writers_left_goes_and_is_no_other_file(train):
    os.makedirs("mine/checkpoints/.step-00000002.tmp-0a1b")
    for name in (lock.LOCK, ".config.json.tmp", ".metrics.csv.tmp-1234"):
        Path("mine", name).touch()
    shutil.rmtree("mine/checkpoints")
    assert train("mine", "--epochs", 1)[0] == 0
    os.makedirs("mine/checkpoints/.step-00000002.tmp-0a1b")
    Path("mine/.metrics.csv.tmp-1234").touch()
    Path("mine/.mine.tmp").touch()
    assert "finished" in train("mine", "--resume")[2]
    hidden = sorted(path.name for path in Path("mine").rglob(".*"))
    assert hidden == [lock.LOCK, ".mine.tmp"]


def test_temporary_names_are_unique_and_own():
    path = Path("config.json")
    names = {_files.temporary_path(path).name for _ in range(100)}
    assert len(names) == 100
    assert {_files.temporary_for(name, is_own=True) for name in names} == {"config.json"}
    assert _files.temporary_for(".config.json.tmp-00", is_own=True) is None


# Output that can't be written


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_log_is_noted_once(train, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = train("mine", "--epochs", 3)
    assert code == 0
    assert err.count("\n") == 1
    assert "warning: what is printed can't be written (No space left on device)" in err
    assert len(rows("mine")) == 3
    assert final_tensors("mine")["step"] == 9


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_another_command_fails_where_its_output_cant_be_written(run, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = run("summary", "lenet_bn", "--json")
    assert code == 1, err
    assert err == "funcnets: standard output can't be written (No space left on device)\n"


def test_an_epoch_is_saved_before_it_is_printed(train, monkeypatch):
    seen = []

    def epoch(self, rows):
        seen.append((rows[0].step, checkpoint.latest("mine/checkpoints").name))

    monkeypatch.setattr(reporters.PlainLines, "epoch", epoch)
    train("mine", "--epochs", 2)
    assert seen == [(3, "step-00000003"), (6, "step-00000006")]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_what_a_terminal_lacks_is_replaced(encoding):
    program = "from funcnets.cli import terminal; terminal.open_streams(); print('é – ⠋ ok')"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment, check=True
    )
    assert printed.stdout.endswith(b" ok\n")
    assert b"?" in printed.stdout


def test_the_bar_outlives_its_terminal():
    class Closed:
        encoding = "utf-8"

        def write(self, text):
            raise OSError(5, "Input/output error")

        def isatty(self):
            return True

        def fileno(self):
            raise ValueError

    errors = []
    stream = terminal.Unfailing(Closed(), errors.append)
    assert (stream.write("text"), stream.isatty()) == (4, True)
    stream.flush()
    assert errors[0].errno == 5


TEXT_CALLS = {"read_text", "write_text", "open", "fdopen", "Popen", "run", "check_output"}


def is_by_locale(call):
    """True if a call reads or writes text by the encoding of the locale."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    strings = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    if name not in TEXT_CALLS or "encoding" in given:
        return False
    if name in ("Popen", "run", "check_output"):
        return not given.isdisjoint({"text", "universal_newlines"})
    # What os, gzip and zip files open is bytes.
    owner = ast.unparse(call.func).rpartition(".")[0]
    is_bytes = any(isinstance(text, str) and "b" in text for text in strings)
    return not (name == "open" and (is_bytes or owner in ("os", "gzip", "archive")))


def test_every_text_file_has_its_encoding():
    """A file that is read by the locale's encoding fails or changes in another country."""
    package = Path(models.__file__).parents[1]
    found = [
        f"{path.relative_to(package)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and is_by_locale(node)
    ]
    assert found == []


# Signals


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_these_signals_save_too(train, monkeypatch, name):
    number = getattr(signal, name)
    after_step(monkeypatch, 2, lambda: signal.raise_signal(number))
    code, out, err = train("mine", "--epochs", 2)
    assert (code, err) == (128 + number, "")
    assert f"interrupted by {name}, saved at step 2" in out


def test_hangups_stay_ignored_under_nohup(train, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        after_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGHUP))
        assert train("mine", "--epochs", 1)[0] == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_echo_of_a_signal_is_ignored_and_a_later_one_stops(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: clock[0])
    with Interrupt() as noted:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 0.9
        signal.raise_signal(signal.SIGTERM)
        assert noted.signal == signal.SIGINT
        clock[0] += 0.2
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_a_signal_in_an_evaluation_is_acted_on_at_once(train, monkeypatch):
    """Also in that of the last epoch; the resumed run measures what was left out."""
    train("whole", "--epochs", 2)
    evaluated = []

    def stop_in_the_second(self, *arguments):
        evaluated.append(arguments)
        if len(evaluated) == len(self.batch[1]) // self.size + 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    step = evaluation.Evaluation.step
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluation, "step", stop_in_the_second)
        code, out, _ = train("mine", "--epochs", 2)
    assert code == 143
    assert "saved at step 6" in out
    assert len(rows("mine")) == 1
    code, _, err = train("mine", "--resume")
    assert (code, err) == (0, "")
    assert untimed("mine") == untimed("whole")
    assert final_tensors("mine") == final_tensors("whole")
    assert "finished" in train("mine", "--resume")[2]


# Saves within an epoch


def test_steps_between_saves(train, monkeypatch):
    train("whole", "--epochs", 2)
    killed = pytest.MonkeyPatch()

    def kill():
        raise SystemExit(9)  # as at once

    after_step(killed, 5, kill)
    assert train("mine", "--epochs", 2, "--save-every", 2)[0] == 9
    killed.undo()
    assert checkpoint.latest("mine/checkpoints").name == "step-00000004"
    assert train("mine", "--resume")[0] == 0
    assert untimed("mine") == untimed("whole")
    assert final_tensors("mine") == final_tensors("whole")


@pytest.mark.parametrize("text", ["0", "-1", "10x", "m", "1.5", ""])
def test_a_bad_time_between_saves_is_refused(train, text):
    code, _, err = train("mine", "--save-every", text)
    assert is_one_line(code, err)
    assert f"--save-every is {text!r}" in err
    assert not Path("mine").exists()


def test_minutes_between_saves(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    cadence = training.Cadence.parse("10m")
    assert not cadence.is_due(1)
    clock[0] = 600.0
    assert cadence.is_due(1)
    cadence.saved(1)
    assert not cadence.is_due(1)


def test_a_call_of_several_steps_is_saved_after_if_it_passes_a_multiple():
    cadence = training.Cadence.parse("5")
    assert [step for step in (3, 6) if cadence.is_due(step)] == [6]
    cadence.saved(6)
    assert [step for step in (9, 10, 12) if cadence.is_due(step)] == [10, 12]


def test_the_best_checkpoint_is_kept_beside_the_last(train, monkeypatch):
    accuracies = iter([0.1, 0.9, 0.3, 0.4, 0.9])
    rows_of = training.Training.epoch_rows

    def epoch_rows(self, *arguments):
        return [row._replace(test_accuracy=next(accuracies)) for row in rows_of(self, *arguments)]

    monkeypatch.setattr(training.Training, "epoch_rows", epoch_rows)
    train("mine", "--epochs", 5)
    kept = [f"step-{3 * epoch:08}" for epoch in (2, 4, 5)]
    assert sorted(os.listdir("mine/checkpoints")) == kept
    assert best_step(RunDirectory("mine").read_rows()) == 6


# Dead ends


def test_killed_before_the_first_checkpoint_it_begins_again(train):
    train("whole", "--epochs", 2)
    RunDirectory.create(RunDirectory("whole").read_config(), "mine").release()
    code, _, err = train("mine", "--epochs", 2)
    assert is_one_line(code, err)
    assert "go on with it by --resume" in err
    code, out, err = train("mine", "--resume")
    assert (code, err) == (0, "")
    assert "resuming at step 0" in out
    assert untimed("mine") == untimed("whole")
    assert final_tensors("mine") == final_tensors("whole")


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_directory_that_is_not_there_any_more_ends_the_training(train, monkeypatch, how):
    def lose():
        if how == "removed":
            shutil.rmtree("mine")
        else:
            os.rename("mine", "other")
        if how == "replaced":
            RunDirectory.create(Config.from_recipe(**CONFIG), "mine").release()

    after_step(monkeypatch, 4, lose)
    code, _, err = train("mine", "--epochs", 9)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("funcnets: mine: the directory of the run was removed or renamed")
    if how == "renamed":
        assert not Path("mine").exists()
        assert len(rows("other")) == 1


def test_a_full_disk_under_the_run_ends_the_training(train, monkeypatch):
    replace = _files.replace

    def full(path, text):
        if path.name == "metrics.jsonl":
            raise OSError(28, "No space left on device")
        replace(path, text)

    monkeypatch.setattr(_files, "replace", full)
    code, _, err = train("mine", "--epochs", 2)
    assert (code, err.count("\n")) == (1, 1)
    assert "mine/metrics.jsonl: can't be written (No space left on device)" in err


def test_the_newest_run_goes_on_whatever_was_removed(run):
    for _ in range(3):
        assert run("train", *TINY, "--epochs", 1)[0] == 0
    shutil.rmtree("runs/tiny-tuned-seed0-2")
    os.mkdir("runs/tiny-tuned-seed0-old")
    config = Config.from_recipe(**CONFIG)
    assert RunDirectory.newest(config).path.name == "tiny-tuned-seed0-3"
    assert RunDirectory.create(config).path.name == "tiny-tuned-seed0-4"
    assert run("train", *TINY, "--resume")[0] == 0
    assert RunDirectory("runs/tiny-tuned-seed0-4").has_checkpoint


def test_the_environment_needs_no_installed_packages(monkeypatch):
    import importlib.metadata

    from funcnets.runs import directory

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = directory.environment(Config.from_recipe(**CONFIG))
    assert found["torchvision"] == "unknown"
