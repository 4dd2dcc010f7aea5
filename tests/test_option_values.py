"""Absurd values of every option that takes a number: one line, and nothing is begun."""

import inspect
from pathlib import Path
from typing import get_args

import pytest

from funcnets.cli import commands, options

pytestmark = pytest.mark.usefixtures("own_directory")

ABSURD = ("nan", "inf", "-inf", "-1", "1e400", "x", "", "99999999999999999999")
HUGE = ABSURD[-1]
# Any finite number above 0 is a learning rate, or an amount; a seed may be negative.
ACCEPTED = {
    **dict.fromkeys(("--lr", "--highest", "--weight-decay", "--clip-norm"), (HUGE,)),
    "--seed": ("-1",),
}


def numerical(command):
    """The flags of a command's options that take a number."""
    parameters = inspect.signature(commands.COMMANDS[command], eval_str=True).parameters
    for name, parameter in parameters.items():
        kinds = get_args(parameter.annotation)
        if {int, float} & {kinds[0], *get_args(kinds[0])}:
            yield options.flag(name, parameter.annotation)


TRAIN = [("train", flag) for flag in (*numerical("train"), "--save-every")]
OTHERS = [
    *(("sweep", flag) for flag in ("--seeds", "--lr")),
    *(("find-lr", flag) for flag in ("--lowest", "--highest", "--count", "--steps")),
]


def test_all_options_with_numbers_are_found():
    flags = {flag for _, flag in TRAIN}
    assert {"--lr", "--epochs", "--ema", "--timeout", "--processes", "--seed"} <= flags
    assert len(flags) > 20


@pytest.mark.parametrize(("command", "flag"), [*TRAIN, *OTHERS], ids=str)
def test_an_absurd_number_is_one_line_that_names_its_flag(run, command, flag):
    network = ["lenet_bn"] if command == "find-lr" else []
    for value in ABSURD:
        if value in ACCEPTED.get(flag, ()):
            continue
        code, _, err = run(command, *network, f"{flag}={value}")
        assert code == 2, value
        assert len(err.splitlines()) == 1
        assert flag in err
    assert not any(Path().iterdir())


def test_a_side_for_which_there_is_no_memory_is_refused(run):
    code, _, err = run("train", "--side", 2**31 - 1, "--backend", "graph")
    assert code == 2
    assert "--side is 2147483647: 128 images of that side take 2,361,183,239,235.8 GB, and" in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()
