"""Preparation of a training or a sweep: begun in a new run directory, or from a checkpoint."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from funcnets import data, runs
from funcnets.cli import configuration, distributed, initial_values, run_data
from funcnets.cli.configuration import UsageError
from funcnets.cli.recipe_options import RECIPE_FIELDS
from funcnets.core import Layer
from funcnets.data import Dataset
from funcnets.data.places import IDX
from funcnets.metrics import Running
from funcnets.optim import Optimizer
from funcnets.parallel import Processes
from funcnets.precision import available
from funcnets.runs import Config, EpochRow, MemberRow, RunDirectory, RunError, SweepConfig
from funcnets.runs.directory import environment
from funcnets.runs.json_records import RecordError, check
from funcnets.runs.networks import is_imported
from funcnets.train import TrainState

ALONE = Processes()


@dataclass(frozen=True)
class Setup:
    """A training that is ready to go on, from its first step or from a checkpoint.

    Attributes:
        dataset: the images that are trained on, and all test images.
        watched: its test images are measured after each epoch: those of `dataset`, or the
            validation part.
        rows: the measurements of the epochs that are done.
        running: the averages over the epoch that is half done, from which `fit` goes on.
        is_unmeasured: True if the last epoch is done, but was not measured.
        notes: lines that tell what is special about this start.
        warnings: lines that warn of something in the run directory.
        processes: the processes that train it together.
    """

    config: Config
    directory: RunDirectory
    dataset: Dataset
    watched: Dataset
    net: Layer
    optimizer: Optimizer
    train_state: TrainState
    rows: tuple[Any, ...] = ()
    running: Any = None
    is_unmeasured: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    processes: Processes = ALONE

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return batches_per_epoch(self.config, self.dataset)

    @property
    def step_name(self) -> str | None:
        """Name under which the compiled training step is saved: all that it is made of.

        The shapes of its arguments are left out, as `jit` adds them.  None for a network behind an
        import path, whose code may change.
        """
        if is_imported(self.config.network):
            return None
        config, axis = self.config, self.processes.axis
        schedule = (config.schedule, config.learning_rate, config.epochs * self.batches)
        name = f"train {(config.network, *schedule, config.side, config.precision)}"
        usual = {each.name: each.default for each in fields(Config)}
        chosen = {each: getattr(config, each) for each in (*NAMED, *RECIPE_FIELDS)}
        name += "".join(f" {k} {v}" for k, v in chosen.items() if v != usual[k])
        return name if axis.size == 1 else f"{name} {axis} {config.sync_batch_norm}"


# Fields besides those of the recipe that decide what a step computes.
NAMED = ("mean", "deviation", "steps_per_call")


def begin(
    given: Mapping[str, Any],
    path: Path | None = None,
    *,
    download: bool = False,
    processes: Processes = ALONE,
) -> Setup:
    """Return a new training, or a new sweep if `seeds` is given, in a new run directory.

    `given` has values by field of the configuration.  Where torchrun has started its processes once
    more, it is the training that they had begun, from its newest checkpoint on.

    Raises ValueError, as a UsageError, RunError or DataError, if it can't be trained like this.
    """

    def configure() -> Config:
        config = configuration.configure(given)
        return replace(config, **run_data.find(given, download=download))

    config = _configured(processes, configure)
    begun = distributed.begun_before(processes, config, path)
    if begun is not None:
        return resume(given, begun, download=download, processes=processes, is_restart=True)
    found = run_data.load(config, processes, is_new=True)
    config = processes.together(lambda: run_data.described(config, found, given))
    distributed.check_config(processes, config)  # now with the facts about each machine's data
    dataset, watched = run_data.divided(config, found)

    def create() -> tuple[Layer, Optimizer, TrainState, tuple[str, ...]]:
        net, optimizer = build(config, dataset)
        size = processes.axis.size
        return net, optimizer, *initial_values.create(config, net, optimizer, dataset, size)

    net, optimizer, train_state, notes = processes.together(create)
    directory = distributed.make_directory(processes, config, path)
    is_named = given.get("dataset") is not None or dataset.name != IDX
    warnings = () if is_named else (run_data.unlike_fashion_mnist(dataset),)
    setup = Setup(config, directory, dataset, watched, net, optimizer, train_state, notes=notes)
    return replace(setup, processes=processes, warnings=warnings)


def resume(
    given: Mapping[str, Any],
    path: Path | None = None,
    *,
    download: bool = False,
    kind: type[Config] = Config,
    processes: Processes = ALONE,
    is_restart: bool = False,
) -> Setup:
    """Return the training in `path`, or else of the network `given`, from its newest checkpoint on.

    It begins with the first step if nothing was saved yet.  `kind` is `SweepConfig` for a sweep.
    One that torchrun restarts may be finished.

    Raises UsageError if `given` contradicts it or it is finished, RunError if there is none or
    another process trains it, CheckpointError if the checkpoint is damaged.
    """

    def find() -> RunDirectory:
        kind_given = {"seeds": 1, **given} if kind is SweepConfig else given
        newest = RunDirectory.newest(configuration.configure(kind_given)) if path is None else None
        directory = newest or RunDirectory(path or "")
        read_config(directory, kind)
        if processes.is_first:
            directory.lock()
        return directory

    def configure() -> Config:
        before, values = read_config(directory, kind), dict(given)
        if "data" in given or "dataset" in given or download:
            kept = {"data": before.data, "dataset": before.dataset}
            if "dataset" in given and given["dataset"] != before.dataset:
                del kept["data"]
            now = {**kept, **run_data.moved(before, given)}
            values |= run_data.find(now, download=download)
        else:
            run_data.check_there(before, directory.path)
        return configuration.resumed(before, values)

    directory = processes.together(find)
    try:
        config = _configured(processes, configure)
        found = run_data.load(config, processes)
        processes.together(lambda: run_data.check_same(config, found))
        parts = run_data.divided(config, found)
        setup = processes.together(
            lambda: _resumed(directory, config, parts, processes, is_restart)
        )
        steps = runs.steps_done(setup.train_state)
        distributed.check_agreement(processes, {"the step of the newest checkpoint": steps})
        processes.together(lambda: _write(setup) if processes.is_first else None)
    except BaseException:
        directory.release()
        raise
    return setup


def _configured(processes: Processes, configure: Callable[[], Config]) -> Config:
    """Return the configuration, which must be the same in all processes.

    One process of each machine makes it before the others, as that may download the data.
    """
    if processes.axis.size > 1:
        processes.together(lambda: configure() if processes.local_rank == 0 else None)
    config = processes.together(configure)
    distributed.check_config(processes, config)
    if processes.axis.size > 1 and config.steps_per_call > 1:
        raise UsageError(
            f"--steps-per-call is {config.steps_per_call}, for one process; several divide each "
            "batch: leave it out"
        )
    return config


def _resumed(
    directory: RunDirectory,
    config: Config,
    parts: tuple[Dataset, Dataset],
    processes: Processes,
    may_be_finished: bool,
) -> Setup:
    setup = restore(directory, config, parts, processes, may_begin=True)
    steps = runs.steps_done(setup.train_state)
    done = steps // setup.batches
    row_kind: Any = MemberRow if isinstance(config, SweepConfig) else EpochRow
    rows = tuple(row for row in directory.read_rows(row_kind) if row.epoch <= done)
    measured = {row.epoch for row in rows}
    is_unmeasured = 0 < steps == done * setup.batches and done not in measured and _has_any(setup)
    lost = [epoch for epoch in range(1, done + 1 - is_unmeasured) if epoch not in measured]
    gone = _describe_lost(directory, lost)
    if not is_unmeasured and not may_be_finished and not _is_untested(config, rows):
        _check_unfinished(directory, config, rows, done, gone)
    notes = (f"resuming at step {steps}", *_changes(directory, config, processes.axis.size))
    warnings = setup.warnings
    if gone:
        warnings = (*warnings, f"{gone}; the training goes on without them")
    return replace(setup, rows=rows, is_unmeasured=is_unmeasured, notes=notes, warnings=warnings)


def _is_untested(config: Config, rows: Sequence[Any]) -> bool:
    """True if the test images of a run with a validation part weren't looked at yet."""
    return config.validation > 0 and all(row.test_accuracy is None for row in rows)


def _check_unfinished(
    directory: RunDirectory, config: Config, rows: Sequence[Any], done: int, gone: str
) -> None:
    """Raise UsageError for a training that has come to its end; `gone` names lost measurements."""
    also = f" ({gone})" if gone else ""
    if done >= config.epochs:
        raise UsageError(
            f"{directory.path}: finished with epoch {done} of {config.epochs}{also}; to train "
            f"longer {f'add --epochs {2 * done}' if config.schedule == 'constant' else _START_NEW}"
        )
    if runs.is_stopped_early(rows, config.patience):
        raise UsageError(
            f"{directory.path}: finished with epoch {done} of {config.epochs}, as the last "
            f"{config.patience} were no better{also}; to train longer start a new run with more "
            "--patience"
        )


def _write(setup: Setup) -> None:
    """Let the run directory be as the training goes on."""
    setup.directory.write_config(setup.config, setup.processes.axis.size)
    setup.directory.write_rows(setup.rows)
    setup.directory.cut_step_rows(runs.steps_done(setup.train_state))


def _has_any(setup: Setup) -> bool:
    """True if the checkpoint kept averages over an epoch, of any member of a sweep."""
    running = setup.running if isinstance(setup.running, list) else [setup.running]
    return any(member.count > 0 for member in running)


def _describe_lost(directory: RunDirectory, epochs: Sequence[int]) -> str:
    """Return which measurements are gone, of the epochs whose rows are missing; "" for none."""
    if not epochs:
        return ""
    what = f"epoch {epochs[0]} are gone"
    if len(epochs) > 1:
        what = f"{len(epochs)} epochs are gone, from epoch {epochs[0]} on"
    return f"{directory.path / 'metrics.jsonl'}: the measurements of {what}"


def open_run(path: Path, given: Mapping[str, Any], processes: Processes = ALONE) -> Setup:
    """Return the training or sweep in `path` as its newest checkpoint has it, to be evaluated.

    `given` may name other data and another `device` than the run's; other data are warned of.

    Raises UsageError, RunError, DataError or CheckpointError if one of them, the run or its
    checkpoint can't be used.
    """
    directory, is_elsewhere = RunDirectory(path), "data" in given or "dataset" in given

    def configure() -> Config:
        config = directory.read_config()
        if is_elsewhere:
            place = run_data.find(run_data.moved(config, given))
            config = replace(config, limit_train=None, **place)
        else:
            run_data.check_there(config, path)
        config = replace(config, device=given.get("device", config.device))
        if config.precision not in available(config.device):
            # `auto`, stopped before it had chosen or learned anything, or a GPU's, away from GPUs.
            config = replace(config, precision="float32")
        configuration.check_device(config.device)
        return config

    config = processes.together(configure)
    distributed.check_agreement(processes, {"RUN": path, "--data": config.data})
    found = run_data.load(config, processes)

    def restored() -> Setup:
        warnings: tuple[str, ...] = ()
        if not is_elsewhere:
            run_data.check_same(config, found)
        else:
            run_data.check_fits(config, found)
            if config.fingerprint not in (None, data.fingerprint(found)):
                warnings = ("evaluated on other data than those of the run",)
        used = run_data.limited(config, found)
        setup = restore(directory, config, (used, used), processes, best=True)
        return replace(setup, warnings=(*setup.warnings, *warnings))

    return processes.together(restored)


_START_NEW = "start a new run with more --epochs: the rate of this one has come to its end"


def read_config(directory: RunDirectory, kind: type[Config]) -> Config:
    """Return the configuration of a run.  Raises RunError for none, or one of another kind."""
    config = directory.read_config()
    if type(config) is not kind:
        what, command = ("training", "train") if kind is SweepConfig else ("sweep", "sweep")
        raise RunError(
            f"{directory.path}: holds a {what}; go on with it by `funcnets {command} --run-dir "
            f"{directory.path} --resume`"
        )
    return config


def _changes(directory: RunDirectory, config: Config, processes: int) -> Iterator[str]:
    """Yield a line for each thing that isn't as it was when the run was last started."""
    before, now = directory.read_environment(), environment(config, processes)
    for name in now:
        if name in before and before[name] != now[name]:
            yield f"{name} was {before[name]} and is {now[name]}: last digits may differ"


def batches_per_epoch(config: Config, dataset: Dataset) -> int:
    """Return the number of batches an epoch, the short last one included."""
    return math.ceil(len(dataset.train_labels) / config.batch_size)


def build(config: Config, dataset: Dataset) -> tuple[Layer, Optimizer]:
    """Return the network and the optimizer of a configuration."""
    return runs.build(config, config.epochs * batches_per_epoch(config, dataset))


def restore(
    directory: RunDirectory,
    config: Config,
    parts: tuple[Dataset, Dataset],
    processes: Processes = ALONE,
    *,
    may_begin: bool = False,
    best: bool = False,
) -> Setup:
    """Return the training of the newest checkpoint, on the configured device.

    With `may_begin` it is one before its first step if there is no checkpoint; with `best` it is
    that of the best epoch, if there is a validation part.
    """
    dataset, watched = parts
    net, optimizer = build(config, dataset)
    if may_begin and not directory.has_checkpoint:
        size = processes.axis.size
        train_state, _ = initial_values.create(config, net, optimizer, dataset, size)
        return Setup(
            config, directory, dataset, watched, net, optimizer, train_state, processes=processes
        )
    found, train_state, metadata = runs.read_newest(directory, config, net, optimizer, best=best)
    return Setup(
        config,
        directory,
        dataset,
        watched,
        net,
        optimizer,
        train_state,
        running=_running(found, config, metadata),
        warnings=directory.warnings(),
        processes=processes,
    )


def _running(found: Path, config: Config, metadata: Mapping[str, Any]) -> Any:
    """Return the averages over the epoch that a checkpoint kept, of each member of a sweep.

    Raises RunError for metadata of another form.
    """
    kept = metadata.get("running")
    try:
        if not isinstance(config, SweepConfig):
            return _averages(kept)
        members = [_averages(member) for member in kept or []]
    except (RecordError, TypeError) as error:
        raise RunError(f"{found}: the averages in its metadata can't be used ({error})") from None
    if len(members) not in (0, len(config.members)):
        raise RunError(
            f"{found}: its metadata are of {len(members)} members; expected those of "
            f"{len(config.members)}"
        )
    return members


def _averages(kept: Any) -> Running:
    if not isinstance(kept, Mapping):
        raise RecordError("running is no object of JSON")
    is_finite = kept.get("loss_sum", 0.0) is not None  # the form of a sweep's member that diverged
    return Running(**check(Running, {**kept, **({} if is_finite else {"loss_sum": math.nan})}))
