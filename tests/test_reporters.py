"""Reporters and messages: lines and bars fit a terminal of 80 columns, and are ASCII."""

import io
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from funcnets.cli.messages import TrainingMessages
from funcnets.cli.preparation import Setup
from funcnets.cli.reporters import ProgressBar
from funcnets.cli.sweep_messages import SweepMessages
from funcnets.metrics import Running
from funcnets.parallel import Axis
from funcnets.runs import Config, EpochRow, MemberRow, RunDirectory, SweepConfig

EPOCH = EpochRow(7, 1645, 1.2345, 0.1234, None, 0.4567, 123456.7, 12.3)
MEMBER = MemberRow(7, 1645, None, 0.4567, False, 123456.7, 12.3, 0.1, 0, 1.2345, 0.1234)
MEMBERS = [MEMBER, MEMBER._replace(diverged=True), MEMBER._replace(seed=None)]
CONFIGS = {
    TrainingMessages: Config.from_recipe("lenet_bn_scratch", "reference", epochs=10),
    SweepMessages: SweepConfig.from_recipe("resnet18", epochs=10, seeds=8, rates=[0.05, 0.1, 0.5]),
}


def made(kind, **changes):
    dataset = SimpleNamespace(source="Fashion-MNIST", train_labels=range(60_000))
    setup = Setup(
        replace(CONFIGS[kind], **changes),
        RunDirectory(Path("runs/mine")),
        *[dataset] * 2,
        *[None] * 3,
    )
    return kind(setup)


@pytest.mark.parametrize("kind", CONFIGS)
def test_lines_fit(kind):
    messages = made(kind)
    rows = [EPOCH] if kind is TrainingMessages else MEMBERS
    lines = [*messages.opening(), messages.epoch(rows)]
    for line in lines:
        assert len(line) <= 80, line
        assert line.isascii(), line
    assert lines[-1].endswith("123,457 examples/s")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cpu"}, "the same bits each time with 1 thread"),
        ({"device": "cpu", "deterministic": True}, "the same bits each time with 1 thread"),
        ({"device": "cuda"}, "other bits each time; for the same ones add --deterministic"),
        ({"device": "cuda", "deterministic": True}, "the same bits each time (--deterministic)"),
    ],
)
def test_a_run_says_whether_it_gives_the_same_bits_each_time(kind, given, said):
    messages = made(kind, **given, precision="bfloat16")
    (line,) = (line for line in messages.opening() if "precision" in line)
    assert line == f"precision bfloat16; {said}"
    assert len(line) <= 80


def test_of_several_gpus_the_same_bits_are_not_promised():
    messages = made(TrainingMessages, device="cuda", deterministic=True)
    messages.setup = replace(messages.setup, processes=SimpleNamespace(axis=Axis(2)))
    assert messages.bits() == "several GPUs may give other bits each time"


def test_the_line_of_an_epoch_with_a_validation_part_fits():
    row = EPOCH._replace(test_accuracy=None, validation_accuracy=0.4567)
    line = made(TrainingMessages, validation=0.1).epoch([row])
    assert "train 0.123, val 0.457" in line
    assert len(line) <= 80


def test_a_speed_that_is_not_known_is_left_out():
    line = made(TrainingMessages).epoch([EPOCH._replace(examples_per_second=None)])
    assert line == "epoch  7/10  loss 1.234  accuracy: train 0.123, test 0.457"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_bar_fits(kind, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    running = Running(loss_sum=123.4, correct=57, count=100)
    is_sweep = kind is SweepMessages
    progress = SimpleNamespace(
        epoch=9, batch=200, batches=235, running=[running] * 24 if is_sweep else running
    )
    reporter = ProgressBar(made(kind))
    for speed in (None, 123456.7):
        reporter.advance(progress, speed)
    file = io.StringIO()
    Console(file=file, width=80, legacy_windows=False).print(reporter.bar.get_renderable())
    line, *below = file.getvalue().splitlines()
    assert len(below) == (3 if is_sweep else 0)
    assert "epoch 10/10" in line
    assert "loss 1.234, accuracy 0.570  123,457/s" in line
    assert "-:--:--" in line or "0:0" in line


def test_a_sweep_shows_each_member_or_of_many_each_rate():
    good, lost = Running(123.4, 57, 100), Running(math.nan, 10, 100)
    few = made(SweepMessages, seeds=1)
    lines = few.members(SimpleNamespace(running=[good, lost, good]))
    assert lines == [
        "  rate 0.05  seed 0  loss  1.234  accuracy 0.570  ###########.........",
        "  rate 0.1   seed 0  diverged",
        "  rate 0.5   seed 0  loss  1.234  accuracy 0.570  ###########.........",
    ]
    many = made(SweepMessages)
    better = Running(1.0, 90, 100)
    running = [*[good] * 7, better, *[lost] * 8, *[good] * 7, lost]
    lines = many.members(SimpleNamespace(running=running))
    assert lines == [
        "  rate 0.05  8 seeds  accuracy 0.570 to 0.900, median 0.570",
        "  rate 0.1   8 of 8 diverged",
        "  rate 0.5   8 seeds  accuracy 0.570 to 0.570, median 0.570  1 of 8 diverged",
    ]
    assert all(len(line) <= 80 and line.isascii() for line in lines)


def test_the_lines_of_members_are_below_the_bar_and_never_wider_than_the_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reporter = ProgressBar(made(SweepMessages, seeds=1))
    reporter.bar.lines = ["x" * 100, "short"]
    file = io.StringIO()
    Console(file=file, width=40, legacy_windows=False).print(reporter.bar.get_renderable())
    assert file.getvalue().splitlines()[-2:] == ["x" * 40, "short"]
