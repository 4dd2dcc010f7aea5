"""Running statistics that lag behind the parameters are told of, and can be measured anew."""

import re

import pytest
import torch
from run_files import SMALL, rows

from funcnets import data, runs


def batch_statistics(trained, images):
    """The mean of the first convolution's output over images, by channel."""
    x = trained.prepare(images)
    conv = trained.params["conv1"]
    y = torch.nn.functional.conv2d(x, conv["weight"], conv["bias"])
    return y.mean((0, 2, 3))


@pytest.mark.parametrize("flags", [(), ("--recalibrate",)], ids=["lagging", "recalibrated"])
def test_statistics_lag_after_few_steps_unless_they_are_measured_anew(run, flags):
    options = ("--epochs", 3, "--run", "first", *SMALL)
    code, out, err = run("train", *flags, *options)
    assert (code, err) == (0, "")
    trained = runs.load("first")
    images = data.limit(data.load("bundled"), 192).train_images
    expected = batch_statistics(trained, images)
    gap = (trained.state["bn1"]["running_mean"] - expected).abs().max()
    last = rows("first")[-1]
    if flags:
        assert gap < 0.02
        assert "lag" not in out
        assert last["test_accuracy"] > 0.4
    else:
        assert gap > 0.05
        found = re.search(r"images are (0.\d+) correct in evaluation, (0.\d+) in training", out)
        assert float(found[2]) == pytest.approx(last["train_accuracy"], abs=1e-3)
        assert float(found[1]) < float(found[2]) - 0.1
        assert "add --recalibrate" in out
