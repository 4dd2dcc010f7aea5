"""Networks of a user's own, trained by an import path."""

import json
import sys

import pytest
import torch

from funcnets import interop, runs, tree
from funcnets.runs import networks

SOURCE = """
import torch
from torch import nn

from funcnets import layers, sequential


def layer(num_classes, rate=0.0):
    return sequential(
        conv=layers.conv2d(3, 5, stride=4), bn=layers.batch_norm(), act=layers.silu(),
        pool=layers.global_avg_pool(), flat=layers.flatten(), drop=layers.dropout(rate),
        fc=layers.linear(num_classes),
    )


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 5, 4), nn.BatchNorm2d(3)
        self.drop, self.fc = nn.Dropout(0.25), nn.Linear(3, 10)

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


small = layer(10)
trained = Mine()
colour = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1352, 10))
three = layer(3)
number = 3


def broken():
    raise RuntimeError("no weights here")


def nothing():
    return None
"""
FEW = ("--epochs", 1, "--limit-train", 40, "--batch-size", 20, "--backend", "graph")


@pytest.fixture
def mine(own_directory, tmp_path):
    """A file my_net.py in the working directory."""
    (tmp_path / "my_net.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("my_net", None)


@pytest.mark.parametrize("name", ["layer", "Mine"])
def test_a_network_behind_an_import_path_trains_resumes_and_loads(mine, run, name):
    path = list(sys.path)
    code, _, err = run("train", f"my_net:{name}", *FEW, "--schedule", "constant")
    assert code == 0, err
    directory = mine / "runs" / f"my_net.{name}-tuned-seed0"
    config = json.loads((directory / "config.json").read_text())
    assert config["network"] == f"my_net:{name}"
    loaded = runs.load(directory)
    assert loaded.step == 2
    assert loaded.predict(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)
    code, out, err = run("eval", directory)
    assert code == 0, err
    assert f"my_net:{name}, step 2: test loss" in out
    code, _, err = run("train", f"my_net:{name}", "--epochs", 2, "--resume")
    assert code == 0, err
    assert runs.load(directory).step == 4
    assert sys.path == path


def test_initial_values_of_a_module_are_those_of_the_seed_or_its_own(mine):
    x = torch.zeros(2, 1, 28, 28)
    key = torch.tensor([0, 1], dtype=torch.int32)
    drawn = networks.build("my_net:Mine", 10)
    first, second = (drawn.init(each, x)[0]["fc"]["weight"] for each in (key, key + 1))
    assert not torch.equal(first, second)
    own, _ = networks.build("my_net:trained", 10).init(key, x)
    named = tree.flatten_named(interop.from_module(sys.modules["my_net"].trained)[0])
    assert all(torch.equal(leaf, named[name]) for name, leaf in tree.flatten_named(own).items())
    assert networks.build("my_net:small", 10) is sys.modules["my_net"].small


def test_a_sweep_and_the_rate_of_dropout(mine, run, known_strategy):
    code, _, err = run("sweep", "my_net:layer", *FEW, "--seeds", 2, "--dropout", 0.5)
    assert code == 0, err
    assert len(runs.load(mine / "runs" / "my_net.layer-tuned-sweep").params["fc"]["weight"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_net:absent", "my_net:absent: my_net has no absent"),
        ("no_such_net:build", r"can't import no_such_net \(ModuleNotFoundError: No module named"),
        ("my_net:", r"NET is 'my_net:'; expected an import path such as package.module:name"),
        ("my_net:number", "my_net:number: is int; expected a Layer, an nn.Module, or a function"),
        ("my_net:nothing", "my_net:nothing: returned NoneType; expected a Layer or an nn.Module"),
        ("my_net:broken", r"broken\(\) failed: RuntimeError: no weights here"),
        ("my_net:colour", r"can't be trained on images of shape \(2, 1, 28, 28\): RuntimeError: "),
        ("my_net:three", r"gives an output of shape \(2, 3\); expected logits of shape \(2, 10\)"),
    ],
)
def test_what_can_not_be_trained_is_said_in_one_line(mine, run, name, message):
    code, _, err = run("train", name, *FEW)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


def test_a_path_has_one_recipe(mine, run):
    code, _, err = run("train", "my_net:layer", "--recipe", "reference", *FEW)
    assert code == 2
    assert "no recipe is called 'reference': my_net:layer has tuned alone" in err


def test_the_parts_of_a_network_are_shown(mine, run):
    code, out, err = run("summary", "my_net:layer")
    assert code == 0, err
    assert "batch_norm()" in out
