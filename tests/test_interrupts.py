"""Signals, and output that nobody reads: a training saves, and goes on to the same bits."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
from run_files import SMALL, final_tensors, rows, untimed

from funcnets import runs
from funcnets.cli import interrupt, reporters
from funcnets.cli.interrupt import Agreement, Wish
from funcnets.parallel import Axis, Processes

pytestmark = pytest.mark.usefixtures("own_directory", "few_test_images")


def start(*arguments):
    """The command line in a process of its own."""
    command = [sys.executable, "-c", "from funcnets.cli.commands import main; main()", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=DEVNULL, stderr=PIPE, env=environment)


INTERRUPTED = """
import sys
from funcnets.__main__ import main

class Finder:
    interrupted = sys.argv.pop(1)

    def find_spec(self, name, path, target=None):
        if name == self.interrupted:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.parametrize("imported", ["typer", "torch"])
def test_ctrl_c_while_a_command_starts_is_no_traceback(imported):
    command = [sys.executable, "-c", INTERRUPTED, imported, "summary", "nin"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(run, monkeypatch, number):
    def stop_after_step_4(self, progress, examples_per_second):
        if runs.steps_done(progress.train_state) == 4:
            signal.raise_signal(number)

    options = ("--epochs", 3, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(reporters.PlainLines, "advance", stop_after_step_4)
        code, out, err = run("train", "--run", "stopped", *options)
    assert (code, err) == (128 + number, "")
    assert f"interrupted by {number.name}, saved at step 4" in out
    assert "to go on: funcnets train --run-dir stopped --resume" in out
    assert len(rows("stopped")) == 1
    for arguments in (("stopped", "--resume"), ("whole", *options)):
        assert run("train", "--run", *arguments)[0] == 0
    assert untimed("stopped") == untimed("whole")
    assert final_tensors("stopped") == final_tensors("whole")


def test_a_process_that_is_terminated_saves():
    process = start("train", "--run", "stopped", "--epochs", "500", *SMALL)
    while process.poll() is None and not Path("stopped/metrics.jsonl").exists():
        time.sleep(0.02)
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (128 + signal.SIGTERM, b"")
    assert list(Path("stopped/checkpoints").glob("step-*"))
    assert len(rows("stopped")) < 500


def test_unread_output_stops_after_saving(run, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        code, _, err = run("train", "--run", "unread", "--epochs", 500, *SMALL)
    assert code == 141
    assert re.fullmatch("funcnets: warning: nobody reads what is printed any more: .*\n", err)
    assert list(Path("unread/checkpoints").glob("step-*"))


def test_unread_help_is_no_traceback():
    command = "python -m funcnets --help | true; exit ${PIPESTATUS[0]}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    ended = subprocess.run(["bash", "-c", command], stderr=PIPE, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_closed_standard_output_changes_nothing(run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    code, _, err = run("train", "--run", "closed", "--epochs", 1, *SMALL)
    sys.stdout.close()  # what was opened in its place
    assert (code, err) == (0, "")
    assert len(rows("closed")) == 1


class Echo(Processes):
    """A process that hears its own number from the others."""

    def maximum(self, value):
        return value


@pytest.mark.parametrize("seconds", [0.001, 0.05, 3.0])
def test_processes_ask_each_other_several_times_a_second(monkeypatch, seconds):
    now = 0.0
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now)
    agree, wish, waits = Agreement(Echo(Axis(2))), Wish(signal.SIGTERM, True), []
    assert agree(wish, is_due=True) == wish
    for _ in range(5):
        began = now
        while True:
            now += seconds
            if agree(wish) == wish:
                break
        waits.append(now - began)
    assert max(waits) <= max(interrupt.SECONDS_BETWEEN_AGREEMENTS, 2 * seconds) + 1e-9
    assert waits[-1] > min(interrupt.SECONDS_BETWEEN_AGREEMENTS, 32 * seconds) / 2
