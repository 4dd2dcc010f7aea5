"""What all tests share: hypothesis profiles, a single thread, and the command line in a process."""

import os
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny_runs import ENTRY, TINY

from funcnets import data, models
from funcnets.cli import commands

# How long an example takes says nothing on a busy machine.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("default", **_PATIENT)
settings.register_profile("soak", **_PATIENT, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# The tests' tensors are tiny: on a busy machine a second thread is waited for 30 times as long as
# the arithmetic takes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """Compiled steps of earlier tests: the same step is traced once in a process of tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_directory(tmp_path, shared_cache, monkeypatch):
    """The working directory of this test alone, with the bundled images in the place of others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    monkeypatch.setenv("FUNCNETS_DATA", "bundled")


@pytest.fixture
def few_test_images(monkeypatch):
    """Runs are measured on the first 100 test images, in a twentieth of the time."""
    from funcnets.cli import run_data

    load = run_data.load

    def load_few(*arguments, **options):
        dataset = load(*arguments, **options)
        images, labels = dataset.test_images[:100], dataset.test_labels[:100]
        return replace(dataset, test_images=images, test_labels=labels)

    monkeypatch.setattr(run_data, "load", load_few)


@pytest.fixture
def known_strategy(monkeypatch):
    """Sweeps train by vmap, without the seconds that choosing it takes."""
    from funcnets.transforms import ensemble

    monkeypatch.setattr(ensemble, "choose_strategy", lambda *arguments, **options: "vmap")


@pytest.fixture
def run(own_directory, monkeypatch, capsys):
    """`run("train", "--epochs", 2)`: what the command exits with and prints, in a new directory."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["funcnets", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def train(run, monkeypatch):
    """`train("mine", ...)` trains a tiny network there, `train("mine", "--resume")` goes on."""
    monkeypatch.setitem(models.INDEX, "tiny", ENTRY)

    def train(directory, *arguments):
        given = arguments if "--resume" in arguments else (*TINY, *arguments)
        return run("train", "--run", directory, *given)

    return train


@pytest.fixture(scope="module")
def verified():
    """Graphs are verified after each pass of the compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUNCNETS_DEBUG", "verify")
        yield


@pytest.fixture(scope="session")
def bundled():
    """The images in the package."""
    return data.load("bundled")
