"""The command line in several processes: they begin, end, fail and resume as one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from run_files import final_tensors, rows

from funcnets.parallel import processes
from funcnets.runs import RunDirectory

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("own_directory")]
SECONDS = 240

# A process that fails as its first argument says, at the fourth step of its first start.
FAULTY = """
import os, signal, sys, time
from funcnets.__main__ import main
from funcnets import data
from funcnets.cli import reporters, training
from funcnets.runs import steps_done

what, rank = sys.argv.pop(1), os.environ["RANK"]
step, load = training.Training.fit, data.load

def load_changed(*args, **options):
    found = load(*args, **options)
    found.test_images[0, 0, 0, 0] += 1
    return found

def fit(self, *args, **options):
    for progress in step(self, *args, **options):
        yield progress
        if steps_done(progress.train_state) == 4 and (what, rank) in ACTIONS:
            if os.environ.get("TORCHELASTIC_RESTART_COUNT") in (None, "0"):
                ACTIONS[what, rank](progress)

def fail(progress):
    raise MemoryError("no room for this")

def change(progress):
    progress.train_state.params["conv1"]["bias"][0] += 1

ACTIONS = {
    ("kill", "1"): lambda progress: os.kill(os.getpid(), signal.SIGKILL),
    ("hang", "1"): lambda progress: time.sleep(1000),
    ("fail", "1"): fail,
    ("change", "1"): change,
}
if (what, rank) == ("arguments", "1"):
    sys.argv += ["--seed", "7"]
if (what, rank) == ("flags", "1"):
    sys.argv += ["--compare-every", "7"]
if (what, rank) == ("data", "1"):
    data.load = load_changed
training.Training.fit = fit
main()
"""


@pytest.fixture
def faulty(tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY)
    return str(path)


def start(*arguments, launcher=(), **environment):
    """Start a command in a process of its own."""
    command = [sys.executable, *launcher, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, env=environment, **pipes)


def ended(process):
    """Return its exit code, standard output, and our lines of standard error, which has others."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, [line for line in err.splitlines() if "funcnets: " in line]


def torchrun(*arguments, size=2, **options):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size))
    return start(*arguments, launcher=launcher, **options)


def train(*arguments):
    return ("-m", "funcnets", "train", "--backend", "graph", *arguments)


# Four batches an epoch, of 64, 64, 64 and 2 images.
SMALL = ("--limit-train", 194, "--batch-size", 64, "--data", "bundled")


def test_processes_train_as_one_does(run):
    options = ("--epochs", 2, *SMALL)
    assert run("train", "--backend", "graph", "--run-dir", "one", *options)[0] == 0
    arguments = train("--run-dir", "three", "--processes", 3, "--compare-every", 1, *options)
    arguments += ("--log-every", 2)
    code, out, err = ended(start(*arguments))
    assert (code, err) == (0, [])
    assert out.count("epoch 2/2") == 1
    assert "in 3 processes" in out
    for ours, theirs in zip(rows("three"), rows("one"), strict=True):
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], abs=2e-3)
    assert [row.step for row in RunDirectory("three").read_step_rows()] == [2, 4, 6, 8]
    alone, together = final_tensors("one"), final_tensors("three")
    for name, values in alone.items():
        torch.testing.assert_close(
            torch.tensor(together[name]), torch.tensor(values), rtol=1e-2, atol=1e-2
        )
    code, out, _ = run("train", "--resume", "--run-dir", "three")
    assert code == 2  # it is finished
    assert run("eval", "three")[0] == 0


def test_a_signal_saves_in_all_and_they_go_on_to_the_same_bits(run):
    options = ("--schedule", "constant", *SMALL)
    process = torchrun(*train("--run-dir", "parts", "--epochs", 500, *options))
    while "epoch   1/500" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert (code, err) == (1, [])  # torchrun's own
    stopped = int(re.search(r"interrupted by SIGTERM, saved at step (\d+)", out)[1])
    assert "--run-dir parts --resume --processes 2" in out
    epochs = ("--epochs", stopped // 4 + 2)
    shutil.copytree("parts", "alone")
    assert ended(start(*train("--run-dir", "parts", "--resume", "--processes", 2, *epochs)))[0] == 0
    assert ended(torchrun(*train("--run-dir", "whole", *epochs, *options)))[0] == 0
    assert final_tensors("parts") == final_tensors("whole")
    code, out, _ = run("train", "--run-dir", "alone", "--resume", *epochs)
    assert code == 0
    assert "processes was 2 and is 1: last digits may differ" in out
    assert len(rows("alone")) == len(rows("whole"))


def test_a_killed_worker_is_started_again_and_resumes(faulty):
    options = ("--backend", "graph", "--epochs", 2, *SMALL)
    assert ended(torchrun(*train("--run-dir", "whole", "--epochs", 2, *SMALL)))[0] == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    again = (*launcher, "--max-restarts", "1")
    code, out, err = ended(start(faulty, "kill", "train", *options, launcher=again))
    assert code == 0, out
    assert "rank 1 has gone" in "".join(err)
    assert final_tensors("runs/lenet_bn-tuned-seed0") == final_tensors("whole")


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("arguments", 2, "--seed is 0 in rank 0 and 7 in rank 1: start all processes by"),
        ("flags", 2, "--compare-every is 1 in rank 0 and 7 in rank 1: start all processes by"),
        ("data", 2, "fingerprint is "),
        ("fail", 1, "rank 1: no room for this"),
        ("hang", 1, "rank 1 hangs: it has not answered for 15 s (--timeout)"),
        ("change", 1, "hold different values of params.conv1.bias: rank 1 and rank 0 differ"),
    ],
)
def test_what_goes_wrong_in_one_is_said_once_and_ends_all(faulty, what, code, message):
    more = ("--timeout", 15) if what == "hang" else ("--compare-every", 1)
    arguments = ("train", "--backend", "graph", "--epochs", 9, *SMALL, *more)
    store = _free_port()
    ranks = [start(faulty, what, *arguments, **_environment(rank, 2, store)) for rank in (0, 1)]
    found = [ended(ranks[0])]
    if what == "hang":
        ranks[1].kill()
    found.append(ended(ranks[1]))
    assert [each[0] for each in found] == [code, -9 if what == "hang" else code]
    said = [line for _, _, err in found for line in err]
    assert len(said) == 1
    assert message in said[0]


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _environment(rank, size, port):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "GROUP_RANK": str(rank),  # each on a machine of its own
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def test_a_port_in_use_ends_all_with_one_line():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        ranks = [start(*train(*SMALL), **_environment(rank, 2, port)) for rank in (0, 1)]
        found = [ended(process) for process in ranks]
    assert [each[0] for each in found] == [2, 2]
    (said,) = [line for _, _, err in found for line in err]
    assert f"another program listens at 127.0.0.1:{port}: choose another port" in said


def test_a_process_that_waits_in_vain_for_another_says_so():
    arguments = train(*SMALL, "--timeout", 3)
    ranks = [start(*arguments, **_environment(rank, 2, _free_port())) for rank in (0, 1)]
    (first, _, (said_first,)), (second, _, (said_second,)) = map(ended, ranks)
    assert (first, second) == (2, 2)
    assert "a process has not joined rank 0 at 127.0.0.1:" in said_first
    assert "rank 0 does not listen at 127.0.0.1:" in said_second


def test_more_processes_than_images_are_refused_in_one_line():
    arguments = train("--processes", 3, "--batch-size", 2, "--limit-train", 20)
    code, _, err = ended(start(*arguments))
    assert code == 2
    (said,) = err
    assert "--batch-size is 2, fewer images than the 3 processes" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--timeout", 0), "--timeout is 0; expected 1 or more"),
        (("--processes", 3), "--processes is 3, but torchrun started 2"),
        (("--epochs", "two"), "Invalid value for '--epochs'"),
    ],
)
def test_what_all_processes_refuse_is_said_by_the_first(arguments, message):
    store = _free_port()
    ranks = [start(*train(*arguments), **_environment(rank, 2, store)) for rank in (0, 1)]
    (first, _, said), (second, _, repeated) = map(ended, ranks)
    assert (first, second) == (2, 2)
    assert len(said) == 1
    assert message in said[0]
    assert repeated == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two': start by torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set: start by torchrun"),
        ({"WORLD_SIZE": "2"}, "the environment variable RANK is '': start by torchrun"),
    ],
)
def test_an_environment_that_isnt_torchruns_is_refused(run, monkeypatch, environment, message):
    monkeypatch.setenv("RANK", "")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("train", *SMALL)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("device", "changes", "message"),
    [
        ("cpu", {"distributed.is_gloo_available": False}, "this PyTorch has no gloo"),
        ("cuda", {"distributed.is_nccl_available": False}, "this PyTorch has no NCCL, which"),
        ("cuda", {"cuda.device_count": 0}, "there is no GPU that PyTorch can use: give --device"),
        ("cuda", {"cuda.device_count": 1}, "2 processes for 1 GPUs: start one for each GPU"),
    ],
)
def test_a_missing_backend_is_refused(run, monkeypatch, device, changes, message):
    for name, value in _environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for name, value in ({"distributed.is_nccl_available": True} | changes).items():
        monkeypatch.setattr(f"torch.{name}", lambda value=value: value)
    code, _, err = run("train", *SMALL, "--device", device)
    assert code == 2
    assert message in err


def test_on_gpus_nccl_is_chosen_and_each_process_takes_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes._backend("cuda", 1) == "cpu:gloo,cuda:nccl"
    assert taken == [1]
