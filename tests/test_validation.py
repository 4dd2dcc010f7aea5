"""A validation part: it chooses the best epoch, and the test images are looked at once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_files import SMALL, rows, untimed

from funcnets import data, metrics, random, runs
from funcnets.cli import evaluation
from funcnets.data import DataError
from funcnets.metrics import Running
from funcnets.runs import EpochRow

WITH_PART = ("--validation", 0.25, "--schedule", "constant", "--run", "first", *SMALL)


def test_the_parts_are_all_training_images_in_order():
    dataset = data.limit(data.load("bundled"), 100)
    train, validation = data.hold_out(dataset, 0.3, random.key(0))
    assert (len(train.train_labels), len(validation.test_labels)) == (70, 30)
    assert train.test_images is dataset.test_images
    both = torch.cat([train.train_images, validation.test_images]).flatten(1)
    assert len(torch.cat([both, dataset.train_images.flatten(1)]).unique(dim=0)) == 100
    places = [
        int((dataset.train_images == image).flatten(1).all(1).nonzero()[0])
        for image in validation.test_images
    ]
    assert places == sorted(places) != [*range(30)]
    again = data.hold_out(dataset, 0.3, random.key(0))[1]
    assert torch.equal(again.test_images, validation.test_images)
    other = data.hold_out(dataset, 0.3, random.key(1))[1]
    assert not torch.equal(other.test_images, validation.test_images)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.999])
def test_a_part_of_no_images_is_refused(fraction):
    dataset = data.limit(data.load("bundled"), 100)
    with pytest.raises(DataError, match="a validation part of"):
        data.hold_out(dataset, fraction, random.key(0))


@pytest.fixture
def accuracies(monkeypatch):
    """Make evaluations of the validation part find these accuracies, of 48 images, in turn."""
    found = []
    measure = evaluation.Evaluation.__call__

    def call(self, train_state):
        if len(self.batch[1]) == 48:
            return Running(1.0, found.pop(0), 48)
        return measure(self, train_state)

    monkeypatch.setattr(evaluation.Evaluation, "__call__", call)
    return found


def test_the_best_checkpoint_is_tested_once(run, accuracies):
    accuracies += [10, 30, 30, 20, 5]
    code, out, err = run("train", "--epochs", 5, *WITH_PART)
    assert (code, err) == (0, "")
    assert "192 training images" in out.splitlines()[0]
    assert "val 0.625" in out
    assert "best in epoch 2: validation accuracy 0.6250" in out
    found = rows("first")
    assert [row["validation_accuracy"] for row in found] == [n / 48 for n in (10, 30, 30, 20, 5)]
    assert [row["epoch"] for row in found if row["test_accuracy"] is not None] == [2]
    assert f"test accuracy {found[1]['test_accuracy']:.4f}\n" in out
    trained = runs.load("first")
    assert trained.step == found[1]["step"]
    dataset = data.load("bundled")
    logits, _ = trained.net.apply(
        trained.params, trained.state, trained.prepare(dataset.test_images)
    )
    accuracy = float(metrics.accuracy(logits, dataset.test_labels))
    assert accuracy == pytest.approx(found[1]["test_accuracy"])
    code, out, _ = run("eval", "first", "--json")
    assert json.loads(out)["step"] == found[1]["step"]
    assert json.loads(out)["test_accuracy"] == pytest.approx(accuracy)


def test_it_stops_early_and_is_finished_then(run, accuracies):
    accuracies += [10, 30, 20, 25, 40]
    code, out, _ = run("train", "--epochs", 5, "--patience", 2, *WITH_PART)
    assert code == 0
    assert "stopped early, after epoch 4 of 5" in out
    assert len(rows("first")) == 4
    code, _, err = run("train", "--run", "first", "--resume")
    assert code == 2
    assert "finished with epoch 4 of 5, as the last 2 were no better" in err


def test_a_run_that_was_not_tested_is_tested_by_a_resume(run, accuracies):
    accuracies += [10, 30, 20, 25]
    run("train", "--epochs", 5, "--patience", 2, *WITH_PART)
    expected = untimed("first")
    untested = [row | {"test_loss": None, "test_accuracy": None} for row in rows("first")]
    Path("first/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in untested))
    code, _, err = run("train", "--run", "first", "--resume")
    assert (code, err) == (0, "")
    assert untimed("first") == expected


def test_json_has_the_best_epoch(run, accuracies):
    accuracies += [30, 10]
    code, out, _ = run("train", "--epochs", 2, "--json", *WITH_PART)
    last = json.loads(out.splitlines()[-1])
    assert code == 0
    assert (last["best_epoch"], last["validation_accuracy"]) == (1, 30 / 48)
    assert last["test_accuracy"] == rows("first")[0]["test_accuracy"]


def test_without_a_part_the_output_says_that_test_images_were_watched(run):
    _, out, _ = run("train", "--epochs", 1, *SMALL)
    assert "test images were watched in each epoch; --validation 0.1 spares them" in out


def test_a_best_checkpoint_that_is_gone_is_replaced_by_the_newest(run, accuracies):
    accuracies += [30, 10, 10, 10]
    run("train", "--epochs", 4, *WITH_PART)
    shutil.rmtree("first/checkpoints/step-00000003")
    assert runs.load("first").step == 12


def row(epoch, accuracy):
    return EpochRow(epoch, 10 * epoch, 0.0, 0.0, None, None, None, 0.0, 0.0, accuracy)


@pytest.mark.parametrize(
    ("found", "patience", "stops"),
    [
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4, 0.4], 3, False),
        ([0.5, 0.4, 0.4, 0.3], 3, True),
        ([0.5, 0.4], None, False),
        ([], 1, False),
    ],
)
def test_patience(found, patience, stops):
    measured = [row(epoch, accuracy) for epoch, accuracy in enumerate(found, 1)]
    assert runs.is_stopped_early(measured, patience) is stops


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("train", "--validation", "1"),
            "--validation is 1.0; expected a number from 0 to below 1",
        ),
        (
            ("train", "--validation", "nan"),
            "--validation is nan; expected a number from 0 to below 1",
        ),
        (
            ("train", "--validation", "0.001", "--limit-train", 99),
            "--validation is 0.001: a validation part of 0.001 of 99 training images has 0",
        ),
        (("train", "--patience", "3"), "--patience is 3; it needs a part of the images"),
        (("train", "--patience", "0", "--validation", "0.1"), "--patience is 0; expected a whole"),
    ],
)
def test_bad_input_is_one_line(run, command, message):
    code, _, err = run(*command)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
