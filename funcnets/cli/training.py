"""The training loop of the command line: measured, saved after each epoch and on a signal."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from funcnets import checkpoint, parallel, precision, runs, timing, train, tree
from funcnets.cli.cadence import Cadence
from funcnets.cli.compiled_step import CompiledStep, Speed, timed
from funcnets.cli.curve_warnings import warning_after_epoch
from funcnets.cli.evaluation import Evaluation, StoppedError, finite
from funcnets.cli.failures import TrainingError, failing_to_write
from funcnets.cli.fastest_precision import fastest_precision
from funcnets.cli.interrupt import Agreement, Interrupt, Wish
from funcnets.cli.metrics_log import ONE_NETWORK, MetricsLog
from funcnets.cli.preparation import Setup
from funcnets.cli.recalibration import describe_lag, recalibrate
from funcnets.cli.reporters import Reporter
from funcnets.compiler import CompileError, jit
from funcnets.data import Dataset
from funcnets.metrics import Deferred, Running
from funcnets.precision import POLICIES
from funcnets.runs import (
    EpochRow,
    best_row,
    best_step,
    is_stopped_early,
    recipe,
    steps_done,
)
from funcnets.train import NonFiniteLoss, Progress, TrainState
from funcnets.transforms import NonFiniteError, check_finite


class EpochTimes(NamedTuple):
    """Speed and times of an epoch; None for what isn't known."""

    examples_per_second: float | None
    seconds: float
    data_seconds: float | None
    step_seconds: float | None
    evaluation_seconds: float


class Outcome(NamedTuple):
    """Result of a training: its last state, and what ended it."""

    setup: Setup
    train_state: TrainState
    rows: tuple[Any, ...]
    interrupted: signal.Signals | None
    saved_step: int | None  # the last step that this training saved
    compile_seconds: float
    seconds: float


class Training:
    """The training of one network, from its setup to the last epoch or the first signal.

    A subclass trains something else by other methods: those from `jit` to `check_train_state`
    (see `sweep.Sweep`).

    Args:
        setup: what is trained; its train state is used up, as the steps take its memory.
        reporter: told how it goes.
        check: run uncompiled, and stop at the first layer with a value that isn't finite.
        cadence: when to save within an epoch.
        compare_every: number of steps after which the train states of all processes are compared;
            None for before each checkpoint alone.
        log_every: number of steps after which the measurements of one are kept; None for never.
        tensorboard: also write all measurements for TensorBoard.
    """

    def __init__(
        self,
        setup: Setup,
        reporter: Reporter,
        *,
        check: bool = False,
        cadence: Cadence | None = None,
        compare_every: int | None = None,
        log_every: int | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.setup, self.reporter, self.check = setup, reporter, check
        self.processes, self.compare_every = setup.processes, compare_every
        self.cadence = cadence or Cadence()
        self.interrupt = Interrupt(is_kept_after_error=self.processes.axis.size > 1)
        self.saved_step: int | None = None
        self.train_state: TrainState = setup.train_state
        if setup.config.device.startswith("cuda"):
            self.train_state = precision.in_channels_last(self.train_state)
        # The averages over the epoch so far; None before its first step.
        self.averages: Deferred[Any] | None = Deferred(setup.running) if setup.running else None
        self.rows: list[Any] = list(setup.rows)
        is_writer = self.processes.is_first
        every = log_every if is_writer else None
        self.log = MetricsLog(setup.directory, every, self.learning_rates_at, self.members)
        self.has_events = tensorboard and is_writer

    # Methods that a subclass replaces.

    def jit(self, step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compile the training step of a network."""
        return jit(step, **options)

    def evaluation(self) -> Evaluation:
        """Return what measures a train state after an epoch."""
        return self._evaluation(self.setup.watched)

    def _evaluation(self, dataset: Dataset) -> Evaluation:
        return Evaluation(self.setup.config, self.setup.net, dataset, self.processes)

    def fit(self, step: Callable[..., Any], **options: Any) -> Iterator[Any]:
        """Yield the progress after each step, as `train.fit` does."""
        options["steps_per_call"] = self.setup.config.steps_per_call
        return train.fit(step, self.train_state, running=self.running, **options)

    def epoch_rows(
        self, progress: Any, tested: Any, times: EpochTimes, measured: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Return the rows of an epoch, from its evaluation, times and last step."""
        step, norm = steps_done(progress.train_state), measured.get("gradient_norm")
        row = EpochRow(
            epoch=progress.epoch + 1,
            step=step,
            train_loss=progress.running.loss,
            train_accuracy=progress.running.accuracy,
            test_loss=None,
            test_accuracy=None,
            **times._asdict(),
            learning_rate=self.learning_rates_at(step)[0],
            gradient_norm=None if norm is None else finite(float(norm.reshape(-1)[-1])),
        )
        return [_measured(row, "validation" if self.setup.config.validation else "test", tested)]

    @property
    def members(self) -> Sequence[tuple[float | None, int | None]]:
        """Learning rate and seed of each member of a sweep."""
        return ONE_NETWORK

    def learning_rates_at(self, step: int) -> list[float]:
        """Return the learning rate of a step, from 1, for each network that is trained."""
        config, steps = self.setup.config, self.setup.config.epochs * self.setup.batches
        rates = (config.learning_rate if rate is None else rate for rate, _ in self.members)
        return [recipe.learning_rate_at(config, steps, step, rate) for rate in rates]

    @property
    def running(self) -> Any:
        """Averages over the epoch so far; None before its first step.

        Reading them waits for the device, and raises NonFiniteLoss if the training diverged.
        """
        return self.averages and self.averages.read()

    def running_fields(self) -> Any:
        """Return the averages over the epoch so far, for JSON."""
        return (self.running or Running())._asdict()

    def check_train_state(self, step: int) -> None:
        """Check a train state before it is saved.

        Raises NonFiniteLoss if the last update left a value that isn't finite.
        """
        for name, leaf in tree.flatten_named(self.train_state).items():
            if leaf.is_floating_point() and not leaf.isfinite().all():
                raise NonFiniteLoss(
                    f"{name} isn't finite after step {step}: try a smaller learning rate"
                )

    # The loop.

    def run(self) -> Outcome:
        """Train, and save after each epoch and on a signal; return how it ended.

        Raises TrainingError if the training diverges or can't be saved; earlier checkpoints stay.
        """
        started = time.perf_counter()
        self.cadence.saved(steps_done(self.train_state))
        for text in self.setup.warnings:
            self.reporter.warn(text)
        with self.interrupt:
            try:
                if self.has_events:
                    self.reporter.line(self.log.open_events(steps_done(self.train_state)))
                compile_seconds = self._compile_and_train()
                self.log.flush()
                if not self.interrupt.signal:
                    self._conclude()
            except (NonFiniteLoss, NonFiniteError) as error:
                self.log.flush()
                raise TrainingError(f"{error}; {self._kept()}") from error
        seconds = time.perf_counter() - started
        return Outcome(
            self.setup,
            self.train_state,
            tuple(self.rows),
            self.interrupt.signal,
            self.saved_step,
            compile_seconds,
            seconds,
        )

    def _compile_and_train(self) -> float:
        """Train, and return the seconds of it that were compilation."""
        try:
            step = self._step()
            self._train(step)
        except CompileError:
            if not self.interrupt.signal:
                raise
            # The signal stopped the compiler too.  Nothing is saved: the step may have begun to
            # write into the train state.
            return 0.0
        return step.compile_seconds

    def _train(self, step: CompiledStep) -> None:
        evaluate, speed, agreement = self.evaluation(), Speed(), Agreement(self.processes)
        evaluate.is_stopped = lambda: self.interrupt.signal is not None
        started = time.perf_counter()
        if self.setup.is_unmeasured:
            done = steps_done(self.train_state) // self.setup.batches
            sizes = (self.setup.batches, self.setup.batches)
            averages = self.averages or Deferred(Running())
            progress = Progress(self.train_state, averages, 0, done - 1, *sizes)
            self._end_epoch(progress, evaluate, speed, started, {}, is_saved=True)
            started = time.perf_counter()
        begun = self._agree(agreement, steps_done(self.train_state), is_due=True)
        if begun.signal or self._is_stopped_early():
            return
        for progress, taken in timed(self._fit(step), step):
            speed.add(taken)
            self.log.step(progress, step.measured, taken)
            self.train_state, self.averages = progress.train_state, progress.averages
            step_number = progress.epoch * progress.batches + progress.batch
            self.reporter.advance(progress, speed.rate)
            if is_epoch_done := progress.batch == progress.batches:
                if self.setup.config.recalibrate and progress.epoch + 1 == self.setup.config.epochs:
                    self.train_state = recalibrate(self.setup, self.train_state)
                self._end_epoch(progress, evaluate, speed, started, step.measured)
                speed, started = Speed(), time.perf_counter()
            self._stop_if_unheard()
            stopped, is_save_due = self._agree(agreement, step_number, is_due=is_epoch_done)
            if not is_epoch_done and (stopped or is_save_due):
                self.save()
            elif self.compare_every and step_number % self.compare_every == 0:
                self._check_replicas()
            if stopped or (is_epoch_done and self._is_stopped_early()):
                return

    def _is_stopped_early(self) -> bool:
        patience = self.setup.config.patience
        return patience is not None and is_stopped_early(self.rows, patience)

    def _conclude(self) -> None:
        """Test the best checkpoint, if that is left to the end, and tell of lagging statistics."""
        if self.setup.config.validation:
            self._test_best()
        last = self.rows[-1] if self.rows else None
        if isinstance(last, EpochRow) and (lag := describe_lag(self.setup, self.train_state, last)):
            self.reporter.line(lag)

    def _test_best(self) -> None:
        """Measure the checkpoint of the best epoch on the test images, and keep it in its row."""
        best = best_row(self.rows)
        if best is None or best.test_accuracy is not None:
            return
        setup, train_state = self.setup, self.train_state
        if best.step != steps_done(train_state):
            parts = (setup.config, setup.net, setup.optimizer)
            path = checkpoint.step_path(setup.directory.checkpoints, best.step)
            train_state, _ = self.processes.together(lambda: runs.read_train_state(path, *parts))
        evaluate = self._evaluation(setup.dataset)
        evaluate.is_stopped = lambda: self.interrupt.signal is not None
        try:
            tested = evaluate(train_state)
        except StoppedError:
            return
        self.rows[self.rows.index(best)] = _measured(best, "test", tested)
        self._write_rows()

    def _write_rows(self) -> None:
        with failing_to_write():
            self._in_first(lambda: self.setup.directory.write_rows(self.rows))

    def _agree(self, agreement: Agreement, step: int, *, is_due: bool) -> Wish:
        """Return what all processes do after a step, and take another one's signal as our own.

        Saves every so many steps are due in all processes at once.
        """
        is_save_due = self.cadence.is_due(step)
        by_steps = self.cadence.steps is not None and is_save_due
        agreed = agreement(Wish(self.interrupt.signal, is_save_due), is_due=is_due or by_steps)
        self.interrupt.signal = agreed.signal or self.interrupt.signal
        return agreed

    def _end_epoch(
        self,
        progress: Any,
        evaluate: Evaluation,
        speed: Speed,
        started: float,
        measured: Mapping[str, Any],
        *,
        is_saved: bool = False,
    ) -> None:
        """Measure an epoch and save: then it is printed.  A signal leaves out the measurement."""
        trained = time.perf_counter()
        try:
            tested = evaluate(self.train_state)
        except StoppedError:
            if not is_saved:
                self.save()  # with the averages of the epoch, for `--resume` to measure it
            return
        ended = time.perf_counter()
        times = EpochTimes(
            speed.rate and round(speed.rate, 1),
            round(ended - started, 3),
            speed.rate and round(speed.data_seconds, 3),
            speed.rate and round(speed.step_seconds, 3),
            round(ended - trained, 3),
        )
        rows = self.epoch_rows(progress, tested, times, measured)
        self.rows.extend(rows)
        self.averages = None
        self._write_rows()
        self.log.epoch(rows)
        if not is_saved:
            self.save()
        self.reporter.epoch(rows)
        if isinstance(rows[0], EpochRow):
            warning = warning_after_epoch(self.setup.config, self.rows)
            if warning is not None:
                self.reporter.warn(warning)

    def _fit(self, step: CompiledStep) -> Iterator[Any]:
        config, dataset = self.setup.config, self.setup.dataset
        return self.fit(
            step,
            batch=(dataset.train_images, dataset.train_labels),
            batch_size=config.batch_size,
            epochs=config.epochs,
        )

    def _stop_if_unheard(self) -> None:
        """Take a broken pipe, as that of `| head`, for a signal to stop."""
        if self.reporter.unheard and not self.interrupt.signal:
            self.reporter.warn("nobody reads what is printed any more: this stops, after saving")
            self.interrupt.signal = signal.SIGPIPE

    def save(self) -> None:
        """Let rank 0 write a checkpoint.

        Raises TrainingError if it can't be written, or processes have different train states.
        """
        fields, step = self.running_fields(), steps_done(self.train_state)
        self.log.flush()
        self.check_train_state(step)
        self._check_replicas()
        epoch, batch = divmod(step, self.setup.batches)
        metadata = {
            "epoch": epoch,
            "batch": batch,
            "running": fields,
            "config": self.setup.config.fixed,
        }
        directory, best = self.setup.directory, best_step(self.rows)
        with failing_to_write():
            self._in_first(lambda: directory.save(step, self.train_state, metadata, best_step=best))
        self.saved_step = step
        self.cadence.saved(step)

    def _in_first(self, write: Callable[[], object]) -> None:
        """Call `write` in rank 0; if it raises an exception, all processes do."""
        self.processes.together(lambda: write() if self.processes.is_first else None)

    def _check_replicas(self) -> None:
        try:
            parallel.check_replicas(self.processes.axis, self.train_state)
        except parallel.DivergenceError as error:
            raise TrainingError(f"{error}; {self._kept()}") from error

    def _kept(self) -> str:
        checkpoints = self.setup.directory.checkpoints
        if checkpoint.latest(checkpoints) is None:
            return "nothing is saved"
        return f"what was saved before is kept in {checkpoints}"

    # The step.

    def _step(self) -> CompiledStep:
        """Return the training step; `auto` tries every precision, and writes which is fastest."""
        config = self.setup.config
        if config.precision != "auto":
            return self._compiled_step(self.setup)
        setups = {
            name: replace(self.setup, config=replace(config, precision=name))
            for name in precision.available(config.device)
        }
        steps = {name: self._compiled_step(setup) for name, setup in setups.items()}
        dataset, size = self.setup.dataset, steps["float32"].size
        batch = (dataset.train_images[:size], dataset.train_labels[:size])
        found = fastest_precision(
            {name: timing.repeat(step, self.train_state, batch) for name, step in steps.items()}
        )
        chosen, why = self.processes.gather(found)[0]
        self.reporter.line(why)
        self.setup = setups[chosen]
        with failing_to_write():
            size = self.processes.axis.size
            self._in_first(lambda: self.setup.directory.write_config(self.setup.config, size))
        return steps[chosen]

    def _compiled_step(self, setup: Setup) -> CompiledStep:
        config, policy = setup.config, POLICIES[setup.config.precision]
        net = check_finite(setup.net) if self.check else setup.net
        axis = self.processes.axis
        function = runs.make_step(config, net, setup.optimizer, axis, gradient_norm=True)
        name, size = setup.step_name, config.batch_size * config.steps_per_call
        return CompiledStep(
            f"the {config.precision} training step",
            function,
            partial(
                self.jit,
                donate_argnums=(0,),
                saved_as=name,
                tf32=policy.tf32,
                deterministic=config.deterministic,
            ),
            min(size, len(setup.dataset.train_labels)),
            None if self.check else config.backend,
            self.reporter,
            self.interrupt,
            axis,
        )


def _measured(row: EpochRow, part: str, tested: Running) -> EpochRow:
    """Return a row with the measurements of its test images or its validation part."""
    measured: dict[str, Any] = {
        f"{part}_loss": finite(tested.loss),
        f"{part}_accuracy": tested.accuracy,
    }
    return row._replace(**measured)
