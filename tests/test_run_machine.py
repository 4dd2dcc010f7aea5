"""Whatever happens to a run, it goes on to the same bits: trained, killed, corrupted, pruned."""

import contextlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from run_files import untimed
from tiny_runs import ENTRY

from funcnets import checkpoint, data, models, tree
from funcnets.checkpoint import CheckpointError
from funcnets.cli import preparation
from funcnets.cli.cadence import Cadence
from funcnets.cli.configuration import UsageError
from funcnets.cli.evaluation import StoppedError
from funcnets.cli.reporters import Reporter
from funcnets.cli.training import Training
from funcnets.metrics import Running
from funcnets.runs import RunDirectory, RunError, steps_done

GIVEN = {
    "network": "tiny",
    "limit_train": 96,
    "epochs": 3,
    "seed": 7,
    "data": "bundled",
    "backend": "graph",
    "device": "cpu",
}
LAST_STEP = 9


class Killed(BaseException):
    """The process ends here, with nothing tidied up."""


class Measured:
    """An evaluation that needs no network: of the number of steps."""

    def is_stopped(self):
        return False

    def __call__(self, train_state):
        if self.is_stopped():
            raise StoppedError
        step = steps_done(train_state)
        return Running(float(step), step % 5, 100)


class TinyTraining(Training):
    def evaluation(self):
        return Measured()


class Acting(Reporter):
    """A reporter that does something after a step of this training."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def advance(self, progress, examples_per_second):
        self.step -= 1
        if self.step == 0:
            self.action(self.training)


def train(path, step=0, action=None, every=None):
    """Train a run in `path` from where it is; the action comes after some more steps."""
    start = preparation.resume if RunDirectory(path).exists else preparation.begin
    setup = start({} if start is preparation.resume else GIVEN, path)
    try:
        reporter = Acting(step, action)
        reporter.training = TinyTraining(setup, reporter, check=True, cadence=Cadence(every))
        reporter.training.run()
    finally:
        setup.directory.release()


@cache
def expected():
    """What a run that is never stopped leaves: its rows, and the tensors after each step."""
    states = {}

    class Recording(TinyTraining):
        def save(self):
            super().save()
            states[steps_done(self.train_state)] = tree.map(torch.clone, self.train_state)

    with tempfile.TemporaryDirectory() as directory:
        setup = preparation.begin(GIVEN, Path(directory, "run"))
        Recording(setup, Reporter(), check=True, cadence=Cadence(1)).run()
        setup.directory.release()
        return untimed(setup.directory.path), states


def crash_after(patch, calls):
    """Kill the process at a call that writes, so many calls from now."""
    left = iter(range(calls))

    def dying(function):
        def call(*arguments, **options):
            if next(left, None) is None:
                raise Killed
            return function(*arguments, **options)

        return call

    for owner, name in (
        (os, "fsync"),
        (os, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "unlink"),
        (shutil, "rmtree"),
    ):
        patch.setattr(owner, name, dying(getattr(owner, name)))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Run(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.path = self.place / "run"
        self.checkpoints = self.path / "checkpoints"

    def attempt(self, *arguments, **options):
        """Train; a checkpoint that can't be used is removed, as the message says, and again."""
        while True:
            try:
                return train(self.path, *arguments, **options)
            except UsageError as error:
                if "finished" not in str(error):
                    raise
                return None
            except (CheckpointError, RunError) as error:
                if "damaged" not in str(error):
                    raise
                shutil.rmtree(max(self.checkpoints.glob("step-*")))

    @rule(step=st.integers(1, 4), every=st.sampled_from([None, 1, 2]))
    def stop_by_a_signal(self, step, every):
        def stop(training):
            training.interrupt.signal = 15

        self.attempt(step, stop, every)

    @rule(step=st.integers(1, 4), every=st.sampled_from([None, 1, 2]))
    def kill_after_a_step(self, step, every):
        def kill(training):
            raise Killed

        with contextlib.suppress(Killed):
            self.attempt(step, kill, every)

    @rule(calls=st.integers(0, 60), every=st.sampled_from([None, 1]))
    def kill_while_it_writes(self, calls, every):
        with pytest.MonkeyPatch.context() as patch:
            crash_after(patch, calls)
            with contextlib.suppress(Killed):
                self.attempt(every=every)

    @precondition(lambda self: [*self.checkpoints.glob("step-*/*")])
    @rule(choice=st.data(), damage=st.sampled_from([cut, flip, Path.unlink]))
    def corrupt(self, choice, damage):
        damage(choice.draw(st.sampled_from(sorted(self.checkpoints.glob("step-*/*")))))

    @rule()
    def prune(self):
        checkpoint.prune(self.checkpoints, 1)

    @precondition(lambda self: self.checkpoints.is_dir())
    @rule()
    def leave_something_unfinished(self):
        (self.checkpoints / ".step-00000001.tmp-0a").mkdir(exist_ok=True)
        (self.path / ".metrics.csv.tmp-0a").touch()

    @invariant()
    def what_can_be_loaded_is_right(self):
        for path in self.checkpoints.glob("step-*"):
            try:
                found, _ = checkpoint.load(path, expected()[1][int(path.name[5:])])
            except CheckpointError:
                continue
            torch.testing.assert_close(found, expected()[1][int(path.name[5:])], rtol=0, atol=0)

    def teardown(self):
        self.attempt()
        assert untimed(self.path) == expected()[0]
        newest = checkpoint.latest(self.checkpoints)
        assert newest.name == f"step-{LAST_STEP:08}"
        assert not [*self.path.rglob(".*.tmp-*")]
        shutil.rmtree(self.place)


@pytest.fixture
def tiny(own_directory, monkeypatch):
    """A network of its own among the models, and the data read once."""
    bundled = data.load("bundled")
    monkeypatch.setattr(data, "load", lambda *arguments, **options: bundled)
    monkeypatch.setitem(models.INDEX, "tiny", ENTRY)


def survives(examples, steps):
    budget = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(Run, settings=budget)  # type: ignore[no-untyped-call]


def test_a_run_survives_everything(tiny):
    survives(examples=5, steps=6)


@pytest.mark.faults
def test_a_run_survives_everything_for_long(tiny):
    survives(examples=50, steps=10)


@pytest.mark.faults
@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("first", range(3))
def test_a_run_survives_a_kill_at_calls_that_write(tiny, first, every):
    """The calls that write, from the configuration of the run to its last checkpoint."""
    for calls in range(first, 60, 6):
        run = Run()
        run.kill_while_it_writes(calls, every)
        run.what_can_be_loaded_is_right()
        run.teardown()
