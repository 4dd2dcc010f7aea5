"""A training that begins with the values of another one, and leaves some of them as they are."""

from pathlib import Path

import pytest
import torch
from image_sets import write_folder
from run_files import SMALL, final_tensors, untimed
from safetensors.torch import save_file

from funcnets import interop, runs, tree

pytestmark = pytest.mark.usefixtures("few_test_images")
TINY = ("--epochs", 1, "--batch-size", 8, "--backend", "graph")


@pytest.fixture
def trained(run):
    run("train", "--epochs", 1, "--run", "trained", *SMALL)
    return runs.load("trained")


def test_what_fits_is_taken_and_what_is_frozen_stays(run, trained):
    write_folder(Path("set"), {"ant": 9, "bee": 9, "cat": 9}, (1, 28, 28))
    options = ("--dataset", "folder:set", "--init-from", "trained", "--freeze", "conv*,fc1.*")
    code, out, err = run("train", *options, "--run", "tuned", *TINY)
    assert (code, err) == (0, "")
    assert "24 tensors from trained" in out
    assert "fc3.bias, fc3.weight begin with random values" in out
    assert "freeze conv*,fc1.*" in out
    before, after = (tree.flatten_named(each.params) for each in (trained, runs.load("tuned")))
    assert after["fc3.weight"].shape == (3, 84)
    for name in set(before) - {"fc3.bias", "fc3.weight"}:
        assert torch.equal(before[name], after[name]) == name.startswith(("conv", "fc1")), name


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_of_weights_begin_as_the_run_that_they_are_of(run, trained, suffix):
    named = interop.to_state_dict(trained.params, trained.state)
    (save_file if suffix == "safetensors" else torch.save)(named, f"weights.{suffix}")
    for source in ("trained", f"weights.{suffix}"):
        options = ("--epochs", 1, "--init-from", source, "--run", f"from-{source}", *SMALL)
        code, out, err = run("train", *options)
        assert (code, err) == (0, "")
        assert f"26 tensors from {source}\n" in out
    assert untimed("from-trained") == untimed(f"from-weights.{suffix}")
    assert final_tensors("from-trained") == final_tensors(f"from-weights.{suffix}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--init-from", "nowhere"), "--init-from nowhere: can't be read (No such file"),
        (("--init-from", "empty"), "empty: no run is here"),
        (("--init-from", "text.pt"), "--init-from text.pt: can't be read ("),
        (("--init-from", "nothing.pt"), "--init-from nothing.pt: can't be read (no content)"),
        (("--init-from", "text.safetensors"), "--init-from text.safetensors: can't be read ("),
        (("--init-from", "list.pt"), "--init-from list.pt: holds no state dict"),
        (("--init-from", "other.pt"), "--init-from other.pt: no parameter of the source has"),
        (("--freeze", "convv*"), "convv*"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message):
    Path("empty").mkdir()
    Path("nothing.pt").touch()
    Path("text.pt").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    torch.save([1, 2], "list.pt")
    torch.save({"other": torch.zeros(3)}, "other.pt")
    code, _, err = run("train", *arguments, "--data", "bundled")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()
