"""Warnings about a training loss that spikes or stays that of chance: one a run, none in vain."""

import functools

import pytest

from funcnets.cli import training
from funcnets.cli.curve_warnings import warning_after_epoch
from funcnets.runs import Config, EpochRow

config = functools.partial(Config.from_recipe, "googlenet", "reference")


def rows(losses, steps=469):
    return [
        EpochRow(epoch, epoch * steps, loss, 0.5, loss, 0.5, None, 1.0)
        for epoch, loss in enumerate(losses, 1)
    ]


def warnings(losses, steps=469, **changes):
    """The number of each epoch with a warning, and the warning."""
    curve, how = rows(losses, steps), config(**changes)
    found = {end: warning_after_epoch(how, curve[:end]) for end in range(1, len(curve) + 1)}
    return {epoch: text for epoch, text in found.items() if text}


NORMAL = {
    "module": [2.15, 1.08, 0.77, 0.55, 0.48, 0.41, 0.37, 0.34, 0.32, 0.30],
    "plateau left in the first epoch": [2.25, 1.15, 0.69, 0.54],
    "noise of a learned set": [0.5, 0.02, 0.003, 0.006, 0.004],
    "small swings": [0.8, 0.6, 0.65, 0.6, 0.62],
    "one epoch": [1.9],
}


@pytest.mark.parametrize("curve", NORMAL.values(), ids=NORMAL)
def test_normal_curves_give_no_warning(curve):
    assert warnings(curve) == {}


def test_few_steps_give_no_warning():
    assert warnings([2.3, 3.0, 1.0, 2.0], steps=4) == {}
    assert warnings([2.302, 2.301], steps=79) == {}
    assert list(warnings([2.302, 2.301, 2.3], steps=79)) == [3]


def test_a_spike_is_named_once_with_what_helps():
    (found,) = warnings([2.17, 1.11, 0.79, 1.54, 1.65, 0.78, 0.59, 2.0]).items()
    assert found == (
        4,
        "training loss rose from 0.790 in epoch 3 to 1.540 in epoch 4; a warm-up (--warmup 1) or "
        "a smaller rate (--lr 0.05) often helps",
    )


def test_a_plateau_is_named_once_with_what_helps():
    (found,) = warnings([2.303, 2.302, 2.1, 1.0, 2.3]).items()
    assert found == (
        1,
        "training loss is 2.303 after 469 steps, that of chance 2.303; Adam (--optimizer adam "
        "--lr 0.0003) or a smaller rate (--lr 0.05) often helps",
    )


def test_chance_is_that_of_the_classes():
    names = tuple(map(str, range(100)))
    assert warnings([2.303], class_names=names) == {}
    assert "that of chance 4.605" in warnings([4.6], class_names=names)[1]


WARM_UP, RATE = "a warm-up (--warmup {}) or ", "a smaller rate (--lr {}) often helps"
ADAM = "Adam (--optimizer adam --lr 0.0003) or "


@pytest.mark.parametrize(
    ("losses", "changes", "helps"),
    [
        ([0.5, 0.9], {}, WARM_UP.format(1) + RATE.format(0.05)),
        ([0.5, 0.9], {"warmup": 2.0}, RATE.format(0.05)),
        ([0.5, 0.9], {"epochs": 1}, WARM_UP.format(0.5) + RATE.format(0.05)),
        ([2.303], {"warmup": 2.0}, ADAM + RATE.format(0.05)),
        ([2.303], {"optimizer": "adam"}, RATE.format(0.0005)),
    ],
)
def test_the_help_fits_the_recipe(losses, changes, helps):
    assert warnings(losses, **changes)[len(losses)].endswith(f"; {helps}")


@pytest.mark.usefixtures("own_directory")
def test_a_training_prints_it_once(run, monkeypatch):
    losses = iter([0.5, 0.9, 0.9])

    def epoch_rows(self, progress, *_):
        epoch = progress.epoch + 1
        return [EpochRow(epoch, 150 * epoch, next(losses), 0.5, 0.5, 0.5, None, 1.0)]

    monkeypatch.setattr(training.Training, "epoch_rows", epoch_rows)
    small = ("--limit-train", 16, "--batch-size", 16, "--data", "bundled", "--backend", "graph")
    code, _, err = run("train", *small, "--epochs", 3)
    assert code == 0
    (line,) = [line for line in err.splitlines() if "training loss" in line]
    assert line.startswith("funcnets: warning: training loss rose from 0.500 in epoch 1 to 0.900")
