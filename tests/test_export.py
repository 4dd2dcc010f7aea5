"""`funcnets export`: each format gives the logits of the evaluation, and the metadata."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from run_files import SMALL

from funcnets import _extras, runs
from funcnets.runs import export


@pytest.fixture
def trained(run):
    assert run("train", "--epochs", 1, "--run", "mine", "--normalize", *SMALL)[0] == 0
    return "mine"


def check_file(kind, path):
    """The file gives the logits of the run for batches of several sizes, and says how to use it."""
    loaded, exported = runs.load("mine"), export.READERS[kind](Path(path))
    for count in (1, 3, 7):
        images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)
        x = loaded.prepare(images)
        expected, _ = loaded.net.apply(loaded.params, loaded.state, x)
        torch.testing.assert_close(exported.logits(x), expected, atol=1e-5, rtol=1e-5)
    metadata = exported.metadata
    assert metadata["class_names"] == list(loaded.classes)
    assert (metadata["side"], metadata["mean"]) == (28, list(loaded.config.mean))


def test_a_program_of_torch_export_equals_the_evaluation(run, trained):
    code, out, err = run("export", trained, "--json")
    measured = json.loads(out)
    assert (code, err) == (0, "")
    assert measured["path"] == "mine/export/model.pt2"
    assert measured["difference"] <= 1e-5
    assert measured["images"] == 2000
    check_file("torch", measured["path"])
    assert [path.name for path in Path("mine/export").iterdir()] == ["model.pt2"]


def test_another_network_is_refused_and_not_kept(run, trained, monkeypatch):
    original = export.as_module

    def changed(net, params, state, config):
        bias = params["fc3"]["bias"] + 0.01
        return original(net, {**params, "fc3": {**params["fc3"], "bias": bias}}, state, config)

    monkeypatch.setattr(export, "as_module", changed)
    code, _, err = run("export", trained)
    assert code == 1
    assert "mine/export/model.pt2: its logits differ from the evaluation's" in err
    assert list(Path("mine/export").iterdir()) == []


def test_a_file_that_cannot_be_read_again_is_not_kept(run, trained, monkeypatch):
    def refuse(path):
        raise RuntimeError("not implemented")

    monkeypatch.setitem(export.READERS, "torch", refuse)
    code, _, err = run("export", trained)
    assert code == 1
    assert "mine/export/model.pt2: can't be read again (not implemented)" in err
    assert list(Path("mine/export").iterdir()) == []
    missing = partial(_extras.require, "no_such_package", "export", "the check")
    monkeypatch.setitem(export.READERS, "torch", lambda path: missing())
    code, out, err = run("export", trained)
    assert (code, out) == (0, "")
    assert "mine/export/model.pt2 is written, but not checked: the check needs" in err
    assert Path("mine/export/model.pt2").exists()


def test_an_ensemble_leaves_out_members_that_diverged(run, known_strategy):
    flags = ["--seeds", 2, "--lr", "0.1,1e30", "--epochs", 1, "--run", "many", *SMALL]
    assert run("sweep", *flags)[0] == 0
    code, out, err = run("export", "many", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["difference"] <= 1e-5


def test_unknown_formats_and_a_missing_extra_are_one_line(run, monkeypatch):
    assert (
        "--to is 'tflite'; expected names of torch, onnx, aot"
        in run("export", "mine", "--to", "tflite")[2]
    )
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'funcnets\[export\]'"):
        export.write_onnx(None, Path("model.onnx"), {})


@pytest.mark.slow
def test_onnx_equals_the_evaluation(run, trained):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    code, out, err = run("export", trained, "--to", "onnx", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["difference"] <= 1e-5
    check_file("onnx", "mine/export/model.onnx")


@pytest.mark.slow
def test_a_package_of_aotinductor_equals_the_evaluation(run, trained):
    code, out, err = run("export", trained, "--to", "aot", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["difference"] <= 1e-5
    check_file("aot", "mine/export/model.aot.pt2")
