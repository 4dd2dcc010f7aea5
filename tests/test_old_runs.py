"""A run directory that an earlier version wrote goes on to be evaluated and resumed."""

import json
import shutil
from pathlib import Path

import pytest

from funcnets.runs.directory import Run

FIXTURE = Path(__file__).with_name("fixtures") / "run_format_1"
# What the version that wrote it measured when it went on, with two threads.
TESTED_AT_STEP_98, TESTED_AT_THE_END = 0.7250, 0.7540


@pytest.fixture
def old_run(own_directory, tmp_path):
    return shutil.copytree(FIXTURE, tmp_path / "old")


def test_it_is_evaluated(run, old_run):
    code, out, err = run("eval", old_run)
    assert code == 0, err
    assert "step 98" in out
    assert f"accuracy {TESTED_AT_STEP_98:.4f} over 2,000 images" in out


def test_a_back_end_that_was_removed_is_read_as_graph(old_run):
    path = old_run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backend": "aot_eager"}))
    assert Run(old_run).read_config().backend == "graph"


def test_it_is_resumed(run, old_run):
    code, out, err = run("train", "--run", old_run, "--resume")
    assert code == 0, err
    assert "resuming at step 98" in out
    accuracy = float(out.split("s of it compiling: test accuracy ")[1].split()[0])
    assert accuracy == pytest.approx(TESTED_AT_THE_END, abs=0.02)
