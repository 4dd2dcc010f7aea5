"""A run directory that an earlier version wrote goes on to be evaluated and resumed."""

import json
import shutil
from pathlib import Path

import pytest

from funcnets import data, metrics, runs

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
    assert runs.RunDirectory(old_run).read_config().backend == "graph"


def test_it_is_loaded(old_run):
    loaded = runs.load(old_run)
    assert (loaded.step, loaded.checkpoint) == (98, old_run / "checkpoints/step-00000098")
    assert loaded.config == runs.Config.from_recipe(
        "lenet_bn",
        "reference",
        batch_size=64,
        epochs=3,
        limit_train=4096,
        device="cpu",
        backend="graph",
    )
    dataset = data.load("bundled")
    images = data.prepare(dataset.test_images, loaded.config.side)
    logits, _ = loaded.net.apply(loaded.params, loaded.state, images)
    accuracy = float(metrics.accuracy(logits, dataset.test_labels))
    assert accuracy == pytest.approx(TESTED_AT_STEP_98, abs=1e-6)


def test_it_is_resumed(run, old_run):
    code, out, err = run("train", "--run", old_run, "--resume")
    assert code == 0, err
    assert "resuming at step 98" in out
    accuracy = float(out.split("s of it compiling: test accuracy ")[1].split()[0])
    assert accuracy == pytest.approx(TESTED_AT_THE_END, abs=0.02)
