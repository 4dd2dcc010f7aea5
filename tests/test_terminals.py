"""Whole trainings on a terminal: of another encoding, and one that is closed."""

import contextlib
import os
import signal
import sys

import pytest
from run_files import SMALL, final_tensors, rows, untimed

pty = pytest.importorskip("pty")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_directory")]

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class OnTerminal:
    """A training in a process that has a terminal of its own."""

    def __init__(self, name, epochs, environment=(), *, is_under_nohup=False):
        arguments = ["train", "lenet_bn", "--epochs", str(epochs), "--run", name, *SMALL]
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            threads = {"OMP_NUM_THREADS": "1"}  # as the tests have, for the same bits
            os.environ.update({"TERM": "xterm", **threads, **dict(environment)})
            if is_under_nohup:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.execv(sys.executable, [sys.executable, "-m", "funcnets", *arguments])
        self.printed = b""

    def read(self, until=None):
        """Read what is printed until this text, or to the end."""
        with contextlib.suppress(OSError):  # as the end of a terminal is on Linux
            while until is None or until not in self.printed:
                if not (part := os.read(self.terminal, 1 << 16)):
                    break
                self.printed += part

    def close(self):
        os.close(self.terminal)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ({"PYTHONIOENCODING": "gbk"}, "gbk"),
        ({"PYTHONIOENCODING": "ascii"}, "ascii"),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1"),
        (C_LOCALE, "ascii"),
        ({"LC_ALL": "C.UTF-8"}, "utf-8"),
    ],
    ids=["gbk", "ascii", "latin-1", "C", "utf-8"],
)
def test_a_training_on_a_terminal_of_any_encoding(environment, encoding):
    training = OnTerminal("mine", 2, environment)
    training.read()
    training.close()
    text = training.printed.decode(encoding)
    assert (training.wait(), "Traceback" in text) == (0, False), text
    for part in ("epoch 1/2", "epoch 2/2", "finished in", "accuracy by epoch: ", "funcnets eval"):
        assert part in text, part
    assert len(rows("mine")) == 2


def test_a_training_whose_terminal_is_closed_is_saved_and_goes_on(run):
    run("train", "lenet_bn", "--epochs", 3, "--run", "whole", *SMALL)
    training = OnTerminal("mine", 3)
    training.read(until=b"epoch 2/3")
    training.close()
    assert training.wait() == 128 + signal.SIGHUP
    assert len(rows("mine")) < 3
    code, _, err = run("train", "--run", "mine", "--resume")
    assert (code, err) == (0, "")
    assert untimed("mine") == untimed("whole")
    assert final_tensors("mine") == final_tensors("whole")


def test_a_training_under_nohup_goes_on_without_its_terminal(run):
    run("train", "lenet_bn", "--epochs", 3, "--run", "whole", *SMALL)
    training = OnTerminal("mine", 3, is_under_nohup=True)
    training.read(until=b"epoch 2/3")
    training.close()
    assert training.wait() == 0
    assert untimed("mine") == untimed("whole")
    assert final_tensors("mine") == final_tensors("whole")
