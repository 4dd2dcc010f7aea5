"""`funcnets doctor`: what is found, and when it fails."""

import json

import pytest

from funcnets.cli import doctor_command
from funcnets.compiler.kernels import build
from funcnets.data import DataError


def findings():
    return {finding.check: finding for finding in doctor_command.examine()}


def test_a_machine_that_can_train_exits_with_0(run):
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert "ok      training: a step of lenet_bn" in out
    code, out, _ = run("doctor", "--json")
    found = {row["check"]: row for row in map(json.loads, out.splitlines())}
    assert code == 0
    assert {"torch", "C++ compiler", "cores", "GPU", "data", "cache", "locale"} <= found.keys()
    assert found["data"]["status"] == "note"
    assert "--download" in found["data"]["advice"]


def test_a_step_without_a_finite_loss_exits_with_1(run, monkeypatch):
    monkeypatch.setattr("torch.rand", lambda *shape: __import__("torch").full(shape, float("nan")))
    code, out, _ = run("doctor")
    assert code == 1
    assert "failed  training: the loss of a step isn't finite" in out


def test_torch_that_cannot_be_imported_exits_with_1(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    code, out, _ = run("doctor")
    assert code == 1
    assert "failed  torch:" in out
    assert "-> install it" in out


def test_what_could_be_better_is_noted_with_advice(own_directory, monkeypatch):
    monkeypatch.setattr(build, "reason_unavailable", lambda: "there is no C++ compiler g++")
    monkeypatch.setattr("funcnets.data.find", lambda: (_ for _ in ()).throw(DataError("nowhere")))
    monkeypatch.setattr(doctor_command, "cpu_quota", lambda: 0.25)
    found = findings()
    assert "CXX" in found["C++ compiler"].advice
    assert found["data"].found == "nowhere"
    assert found["cores"].advice == "set OMP_NUM_THREADS=1"
    assert {found[name].status for name in ("C++ compiler", "data", "cores")} == {"note"}


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: 1 / 0)
    assert findings()["places"].found.startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    ("text", "quota"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)]
)
def test_the_quota_of_a_container_is_read(text, quota, tmp_path):
    path = tmp_path / "cpu.max"
    assert doctor_command.cpu_quota(path) is None
    path.write_text(text)
    assert doctor_command.cpu_quota(path) == quota
