"""The training loop of the command line: measured, saved after each epoch and on a signal."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from funcnets import checkpoint, data, precision, timing, train, tree
from funcnets.cli.compiled_step import Evaluation, Interrupt, Reporter, Speed, Step
from funcnets.cli.fastest_precision import fastest_precision
from funcnets.cli.preparation import Session, open_run
from funcnets.compiler import CompileError, jit
from funcnets.metrics import Running
from funcnets.precision import POLICIES
from funcnets.runs.config import Row
from funcnets.train import NonFiniteLoss, Progress, TrainState
from funcnets.transforms import NonFiniteError, check_finite


class TrainingError(RuntimeError):
    """A training that stopped because of itself or of the machine, not of what was asked for."""


class Outcome(NamedTuple):
    """How a training ended."""

    session: Session
    train_state: TrainState
    rows: tuple[Any, ...]
    interrupted: signal.Signals | None
    compile_seconds: float
    seconds: float


class Work(NamedTuple):
    """What the loop does: it trains one network, or (see `sweep`) all members of an ensemble.

    Attributes:
        jit: how a network's training step is compiled: as `jit` does it, or for all members.
        evaluation: what measures a train state after an epoch.
        fit: `fit(step, train_state, batch, batch_size=..., epochs=..., **more)`, yields progress.
        rows: `rows(session, progress, tested, examples a second, seconds)`, those of an epoch.
        save: `save(session, train_state, running)` writes a checkpoint.
    """

    jit: Callable[..., Any]
    evaluation: type[Evaluation]
    fit: Callable[..., Iterator[Any]]
    rows: Callable[[Session, Any, Any, float | None, float], Sequence[Any]]
    save: Callable[[Session, TrainState, Any], None]


def go(
    session: Session, reporter: Reporter, work: Work | None = None, *, check: bool = False
) -> Outcome:
    """Train to the last epoch, or to the first signal; save after each epoch and on a signal.

    Uses up `session.train_state`, whose memory the steps take.  With `check` the steps run
    uncompiled, and stop at the first layer with a value that isn't finite.  Raises TrainingError
    where the training diverges or can't be saved; earlier checkpoints stay.
    """
    for text in session.warnings:
        reporter.warn(text)
    with Interrupt() as interrupt:
        try:
            return _go(session, work or TRAINING, reporter, interrupt, check)
        except (NonFiniteLoss, NonFiniteError) as error:
            raise TrainingError(f"{error}; {_kept(session.directory.checkpoints)}") from error


def _kept(checkpoints: Path) -> str:
    if checkpoint.latest(checkpoints) is None:
        return "nothing is saved"
    return f"what was saved before is kept in {checkpoints}"


def _go(
    session: Session, work: Work, reporter: Reporter, interrupt: Interrupt, check: bool
) -> Outcome:
    make_step = partial(_train_step, work=work, reporter=reporter, interrupt=interrupt, check=check)
    compiled: list[Step] = []
    started = epoch_started = time.perf_counter()
    rows, speed, train_state = list(session.rows), Speed(), session.train_state
    try:
        session, step = _choose_precision(session, reporter, make_step)
        compiled.append(step)
        evaluation = work.evaluation(session.config, session.net, session.dataset)
        for progress in _timed(_fit(session, work, step), step, speed):
            train_state = progress.train_state
            reporter.advance(progress, speed.rate)
            if ended := progress.batch == progress.batches:
                seconds = time.perf_counter() - epoch_started
                tested = evaluation(train_state)
                measured = work.rows(session, progress, tested, speed.rate, seconds)
                rows.extend(measured)
                session.directory.write_rows(rows)
                reporter.epoch(measured)
                speed.reset()
                epoch_started = time.perf_counter()
            _stop_unheard(reporter, interrupt)
            if ended or interrupt.signal:
                work.save(session, train_state, progress.running)
            if interrupt.signal:
                break
    except CompileError:
        if not interrupt.signal:
            raise
        # The signal stopped the compiler, before any step: saved is where the session began.
        work.save(session, train_state, session.running)
    compile_seconds = sum(step.compile_seconds for step in compiled)
    seconds = time.perf_counter() - started
    return Outcome(session, train_state, tuple(rows), interrupt.signal, compile_seconds, seconds)


def _stop_unheard(reporter: Reporter, interrupt: Interrupt) -> None:
    """Take it for a signal to stop that nobody reads what is told any more, as in `| head`."""
    if reporter.unheard and not interrupt.signal:
        reporter.warn("nobody reads what is printed any more: this stops, after saving")
        interrupt.signal = signal.SIGPIPE


def _choose_precision(
    session: Session, reporter: Reporter, make_step: Callable[[Session], Step]
) -> tuple[Session, Step]:
    """The training at a precision of its own, and its step; `auto` tries all, and is recorded."""
    if session.config.precision != "auto":
        return session, make_step(session)
    sessions = {
        name: replace(session, config=replace(session.config, precision=name))
        for name in precision.available(session.config.device)
    }
    steps = {name: make_step(each) for name, each in sessions.items()}
    dataset, size = session.dataset, steps["float32"].size
    batch = (dataset.train_images[:size], dataset.train_labels[:size])
    chosen, why = fastest_precision(
        {name: timing.repeat(step, session.train_state, batch) for name, step in steps.items()}
    )
    reporter.line(why)
    session.directory.write_config(sessions[chosen].config)
    return sessions[chosen], steps[chosen]


def _train_step(
    session: Session, work: Work, reporter: Reporter, interrupt: Interrupt, check: bool
) -> Step:
    config = session.config
    function = train.make_train_step(
        check_finite(session.net) if check else session.net,
        session.optimizer,
        prepare=partial(data.prepare, side=config.side),
        policy=POLICIES[config.precision],
    )
    return Step(
        f"the {config.precision} training step",
        function,
        min(config.batch_size, len(session.dataset.train_labels)),
        None if check else config.backend,
        reporter,
        interrupt,
        donate_argnums=(0,),
        jit=work.jit,
        saved_as=session.step_name,
        tf32=POLICIES[config.precision].tf32,
    )


def _fit(session: Session, work: Work, step: Step) -> Iterator[Any]:
    return work.fit(
        step,
        session.train_state,
        (session.dataset.train_images, session.dataset.train_labels),
        batch_size=session.config.batch_size,
        epochs=session.config.epochs,
        running=session.running,
    )


def _timed(steps: Iterator[Any], step: Step, speed: Speed) -> Iterator[Any]:
    """The same steps, whose time is added to `speed`, but for the first of each batch size."""
    before: Any = None
    started = time.perf_counter()
    for progress in steps:
        seconds = time.perf_counter() - started
        same_epoch = before is not None and before.epoch == progress.epoch
        if not step.is_first:
            seen = before.examples if same_epoch else 0
            speed.add(progress.examples - seen, seconds)
        yield progress
        before, started = progress, time.perf_counter()


def _rows(
    session: Session, progress: Progress, tested: Running, rate: float | None, seconds: float
) -> list[Row]:
    row = Row(
        epoch=progress.epoch + 1,
        step=int(progress.train_state.step),
        train_loss=progress.running.loss,
        train_accuracy=progress.running.accuracy,
        test_loss=tested.loss if math.isfinite(tested.loss) else None,
        test_accuracy=tested.accuracy,
        examples_per_second=rate and round(rate, 1),
        seconds=round(seconds, 3),
    )
    return [row]


def _save(session: Session, train_state: TrainState, running: Running) -> None:
    """Write a checkpoint; NonFiniteLoss where the last update left something that isn't finite."""
    step = int(train_state.step)
    for name, leaf in tree.flatten_named(train_state).items():
        if leaf.is_floating_point() and not leaf.isfinite().all():
            raise NonFiniteLoss(
                f"{name} isn't finite after step {step}: try a smaller learning rate"
            )
    epoch, batch = divmod(step, session.batches)
    running = running if batch else Running()
    metadata = {"epoch": epoch, "batch": batch, "running": running._asdict()}
    save(session, step, train_state, metadata)


def save(session: Session, step: int, train_state: TrainState, metadata: dict[str, Any]) -> None:
    """Write the checkpoint of a step; TrainingError where that can't be done."""
    try:
        session.directory.save(step, train_state, metadata)
    except checkpoint.CheckpointError as error:
        raise TrainingError(str(error)) from error


TRAINING = Work(jit, Evaluation, train.fit, _rows, _save)


def evaluate(path: Path, given: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Loss and accuracy of the newest checkpoint of the run in `path`, over all test images.

    `given` may name other `data` and another `device` than the run's.  Raises UsageError, DataError
    or CheckpointError where one of them, the run or its checkpoint can't be used.
    """
    opened = open_run(path, given)
    for text in opened.warnings:
        reporter.warn(text)
    config = opened.config
    tested = Evaluation(config, opened.net, opened.dataset)(opened.train_state)
    return {
        "run": str(path),
        "network": config.network,
        "step": int(opened.train_state.step),
        "test_images": tested.count,
        "test_loss": tested.loss if math.isfinite(tested.loss) else None,
        "test_accuracy": tested.accuracy,
    }
