"""The command line on other data than Fashion-MNIST: trained, kept in the run, compared later."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from image_sets import write_folder, write_idx
from run_files import rows, untimed

from funcnets import data, metrics, runs
from funcnets.cli import run_data
from funcnets.data import memory

TINY = ("--epochs", 1, "--batch-size", 8, "--backend", "graph", "--run", "first")


@pytest.fixture(autouse=True)
def nowhere(own_directory, tmp_path, monkeypatch):
    monkeypatch.delenv("FUNCNETS_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def mine():
    write_idx(Path("mine"), train=24, test=8, side=28)
    return Path("mine")


def gone(directory):
    place = Path(directory).absolute()
    return (
        f"funcnets: first: its images were in {place}, which isn't there any more; if they were "
        "moved, give their directory: --data DIR\n"
    )


def config_of(directory):
    return json.loads(Path(directory, "config.json").read_text())


def test_files_of_any_hash_are_trained_on_and_it_is_said(run, mine):
    code, out, err = run("train", "--data", mine, *TINY)
    assert code == 0
    assert err == (
        "funcnets: warning: these files aren't Fashion-MNIST's: 4 classes, 28 x 28 pixels, "
        "1 channel\n"
    )
    assert "4 classes: 0, 1, 2, 3" in out
    config = config_of("first")
    assert config["class_names"] == ["0", "1", "2", "3"]
    assert config["dataset"] == "idx"
    assert config["fingerprint"] == data.fingerprint(data.load(mine))
    assert runs.load("first").params["fc3"]["bias"].shape == (4,)


def test_a_run_goes_on_and_is_evaluated_on_its_data_alone(run, mine, tmp_path):
    begin = ("train", "--data", mine, "--schedule", "constant", *TINY)
    assert run(*begin)[0] == 0
    shutil.move(mine, tmp_path / "moved")
    code, _, err = run("train", "--run", "first", "--resume", "--epochs", 2)
    assert (code, err) == (2, gone("mine"))
    assert run("eval", "first") == (2, "", err)
    assert run("report", "first") == (2, "", err)
    more = ("train", "--run", "first", "--resume", "--epochs", 2, "--data", "moved")
    assert run(*more)[::2] == (0, "")
    assert [row["epoch"] for row in rows("first")] == [1, 2]
    write_idx(tmp_path / "moved", train=25, test=8, side=28)
    for command in (more[:-2], ("eval", "first")):
        code, _, err = run(*command)
        assert code == 2
        assert err.count("\n") == 1
        assert "moved: other images or labels than the run was trained on" in err


def test_a_run_is_evaluated_on_other_data_where_they_are_given(run, mine):
    run("train", "--data", mine, *TINY)
    write_idx(Path("other"), train=9, test=5, side=20)
    code, out, err = run("eval", "first", "--data", "other")
    assert code == 0
    assert "over 5 images" in out
    assert err == "funcnets: warning: evaluated on other data than those of the run\n"
    assert run("eval", "first", "--data", "mine")[::2] == (0, "")


def test_colour_images_in_folders_normalised(run):
    write_folder(Path("set/train"), {"ant": 12, "bee": 12}, (3, 32, 32))
    write_folder(Path("set/val"), {"ant": 4, "bee": 4}, (3, 32, 32))
    code, out, err = run("train", "--dataset", "folder:set", "--normalize", *TINY)
    assert (code, err) == (0, "")
    assert "2 classes: ant, bee" in out
    config = config_of("first")
    dataset = data.load(dataset="folder:set")
    assert (config["side"], config["channels"]) == (32, 3)
    assert config["mean"] == [*data.moments(dataset.train_images)[0]]
    trained = runs.load("first")
    assert trained.classes == ("ant", "bee")
    x = trained.prepare(dataset.test_images)
    expected = data.prepare(
        dataset.test_images, 32, mean=config["mean"], deviation=config["deviation"]
    )
    assert torch.equal(x, expected)
    logits, _ = trained.net.apply(trained.params, trained.state, x)
    accuracy = rows("first")[-1]["test_accuracy"]
    assert float(metrics.accuracy(logits, dataset.test_labels)) == pytest.approx(accuracy)
    code, out, err = run("eval", "first")
    assert (code, err) == (0, "")
    assert f"accuracy {accuracy:.4f} over 8 images" in out
    # Where the folder has another place, the same images are the same data.
    Path("set").rename("moved")
    assert run("eval", "first") == (2, "", gone("set"))
    assert run("eval", "first", "--dataset", "folder:moved")[::2] == (0, "")
    assert run("eval", "first", "--data", "moved")[::2] == (0, "")
    resumed = run("train", "--run", "first", "--resume", "--data", "moved")
    assert "finished with epoch 1 of 1" in resumed[2]  # its data were found


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("cifar10", {"data": "new"}, {"data": "new", "dataset": "cifar10"}),
        ("mnist", {"data": "new"}, {"data": "new"}),  # any IDX files fit its network
        ("folder:/old", {"data": "bundled"}, {"data": "bundled"}),
        ("folder:/old", {"dataset": "idx", "data": "new"}, {"dataset": "idx", "data": "new"}),
    ],
)
def test_a_directory_alone_has_data_of_the_kind_of_the_run(name, given, found):
    config = runs.Config.from_recipe("lenet_bn", dataset=name)
    assert run_data.moved(config, given) == found


def test_sides_that_are_given_or_needed_are_kept(run):
    write_folder(Path("set"), {"ant": 12, "bee": 12}, (1, 32, 32))
    run("train", "--dataset", "folder:set", "--side", 30, *TINY)
    assert config_of("first")["side"] == 30
    assert runs.load("first").params["conv1"]["weight"].shape[1] == 1


def test_a_sweep_of_other_data(run, mine):
    sweep = ("sweep", "--data", mine, "--seeds", 2, "--epochs", 1, "--batch-size", 8)
    assert run(*sweep, "--backend", "graph", "--run", "first")[0] == 0
    assert run("eval", "first")[::2] == (0, "")
    assert runs.load("first").params["fc3"]["bias"].shape == (2, 4)


def test_fashion_mnist_is_trained_on_as_before(run, monkeypatch):
    monkeypatch.setenv("FUNCNETS_DATA", "bundled")
    options = ("--epochs", 1, "--limit-train", 64, "--backend", "graph")
    for name, more in {
        "environment": (),
        "named": ("--dataset", "fashion-mnist"),
        "directory": ("--data", data.BUNDLED),
    }.items():
        assert run("train", *options, "--run", name, *more)[::2] == (0, "")
        assert untimed(name) == untimed("environment")
        assert config_of(name)["dataset"] == "fashion-mnist"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnsit"], "no data set is called 'mnsit': did you mean 'mnist'?"),
        (["--dataset", "mnist"], "give its directory, or download it: --data DIR or --download\n"),
        (["--dataset", "mnist", "--data", "mine"], "not the file of MNIST: its content has MD5"),
        (["--dataset", "fashion-mnist", "--data", "mine"], "not the file of Fashion-MNIST"),
        (["--dataset", "cifar10", "--data", "mine"], "no data_batch_1"),
        (["--dataset", "folder:nowhere"], "nowhere: can't be read (No such file"),
        (["--data", "mine", "--download"], "not the file of Fashion-MNIST"),
    ],
)
def test_bad_data_are_one_line_and_nothing_is_trained(run, mine, arguments, message):
    code, _, err = run("train", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_set_that_does_not_fit_is_one_line(run, mine, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    code, _, err = run("train", "--data", mine)
    assert code == 2
    assert "its images take 0.0 MB, and 0.0 MB of memory are free on cpu" in err


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            lambda: write_idx(Path("other"), train=9, test=7, side=28, classes=6),
            ("--data", "other"),
            "other: 6 classes (0, 1, 2, 3, 4, 5), but the run was trained on 4 (0, 1, 2, 3)",
        ),
        (
            lambda: write_folder(Path("set"), {"ant": 2, "bee": 2}),
            ("--dataset", "folder:set"),
            "set: images of 3 channels, but the run was trained on images of 1",
        ),
    ],
)
def test_data_that_do_not_fit_the_network(run, mine, make, arguments, message):
    run("train", "--data", mine, *TINY)
    make()
    code, _, err = run("eval", "first", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
