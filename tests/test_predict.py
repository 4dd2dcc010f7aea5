"""A trained run as a network: images are named, and learning rates are found."""

import json
import re
from pathlib import Path

import pytest
import torch
from image_sets import picture, write_folder, write_image
from run_files import SMALL

from funcnets import data, runs
from funcnets.cli import find_lr
from funcnets.cli.find_lr import Found, RateRow
from funcnets.runs import SweepConfig

pytestmark = pytest.mark.usefixtures("own_directory")


@pytest.fixture
def colour_run(run):
    write_folder(Path("set"), {"ant": 9, "bee": 9, "cat": 9}, (3, 32, 32))
    options = ("--epochs", 1, "--batch-size", 9, "--backend", "graph", "--run", "first")
    assert run("train", "--dataset", "folder:set", "--normalize", *options)[0] == 0
    return "first"


def test_images_are_named_as_the_network_was_trained(run, colour_run):
    write_image(Path("wide.jpg"), picture(1, (3, 40, 60)))
    write_image(Path("grey.png"), picture(2, (1, 32, 32)))
    code, out, err = run("predict", "first", "wide.jpg", "grey.png", "--top", 2, "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["file"] for row in rows] == ["wide.jpg", "grey.png"]
    trained = runs.load("first")
    for row in rows:
        image = data.read_image(row["file"], 3, 32)
        logits, _ = trained.net.apply(trained.params, trained.state, trained.prepare(image[None]))
        expected = dict(zip(trained.classes, logits.softmax(1)[0].tolist(), strict=True))
        best = sorted(expected, key=expected.get, reverse=True)[:2]
        assert [each["class"] for each in row["top"]] == best
        for each in row["top"]:
            assert each["probability"] == pytest.approx(expected[each["class"]], abs=1e-5)
    code, out, _ = run("predict", "first", "wide.jpg")
    assert code == 0
    assert out.startswith("wide.jpg: ")
    assert {*trained.classes} <= {*out.replace(",", "").split()}


def test_a_sweep_predicts_by_the_mean_of_its_members(run, known_strategy):
    run("sweep", "--seeds", 3, "--epochs", 1, "--run", "first", *SMALL)
    images = data.load("bundled").test_images[:5]
    trained = runs.load("first")
    probabilities = [
        trained.net.apply(
            *(
                {k: _member(v, i) for k, v in part.items()}
                for part in (trained.params, trained.state)
            ),
            trained.prepare(images),
        )[0].softmax(1)
        for i in range(3)
    ]
    torch.testing.assert_close(trained.predict(images), torch.stack(probabilities).mean(0))


def _member(part, index):
    return {name: leaf[index] for name, leaf in part.items()} if isinstance(part, dict) else part


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("first", "absent.png"), "absent.png: can't be read (No such file"),
        (("first", "notes.png"), "notes.png: neither a whole PNG nor JPEG image"),
        (("nowhere", "set/ant/00.png"), "no run is here"),
        (("first", "set/ant/00.png", "--top", "0"), "--top is 0; expected 1 or more"),
        (("first",), "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_printed(run, colour_run, arguments, message):
    Path("notes.png").write_text("no image")
    code, out, err = run("predict", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_rates_are_tried_side_by_side(run):
    options = ("--lowest", 1e-6, "--highest", 1.0, "--count", 3, "--steps", 8, *SMALL)
    code, out, err = run("find-lr", "lenet_bn", "--json", *options)
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["learning_rate"] for row in rows] == [1e-6, 0.001, 1.0]
    assert [row["is_best"] for row in rows] == [False, False, True]
    code, out, _ = run("find-lr", "lenet_bn", *options, "--plot", "rates.png")
    assert code == 0
    assert re.search(r"^loss by rate: [x_.~=+*#-]{3}  1e-06 to 1$", out, re.MULTILINE)
    assert Path("rates.png").read_bytes().startswith(b"\x89PNG")
    assert "to train with it: funcnets train lenet_bn --lr 1\n" in out
    assert "the highest rate is the best" in out
    assert not Path("runs").exists()


def found(*losses):
    config = SweepConfig.from_recipe(
        seeds=1, rates=tuple(0.1 * n for n in range(1, 1 + len(losses)))
    )
    finite = [loss for loss in losses if loss is not None]
    rows = [
        RateRow(rate, loss, loss is not None and loss == min(finite))
        for rate, loss in zip(config.rates, losses, strict=True)
    ]
    return Found(config, 8, 2.3, rows)


def test_the_course_of_losses_marks_those_above_the_first():
    assert find_lr.course(found(2.2, 1.0, 5.0, None)) == "loss by rate: *_xx  0.1 to 0.4"


def test_no_rate_is_suggested_where_none_is_good():
    for losses in ((None, None), (2.4, None)):
        assert find_lr.suggestion(found(*losses))[0].startswith("no rate made the loss smaller")
    assert "--lr 0.1" in find_lr.suggestion(found(1.0, None))[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lowest", "1", "--highest", "0.1"), "--lowest is 1 and --highest is 0.1; expected two"),
        (("--lowest", "0"), "--lowest is 0"),
        (("--count", "1"), "--count is 1; expected 2 rates or more"),
        (("--steps", "3"), "--steps is 3; expected 4 or more"),
        (("--momentum", "2"), "--momentum is 2.0"),
        (("--plot", "rates.pdf"), "--plot is 'rates.pdf'; expected a name that ends in .png or"),
        (("--plot", f"{__file__}/a.png"), "test_predict.py/a.png'; expected a file in a directory"),
    ],
)
def test_bad_rates_are_one_line(run, arguments, message):
    code, _, err = run("find-lr", "lenet_bn", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
