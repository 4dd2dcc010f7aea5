"""Preparation of a training or a sweep: begun in a new run directory, or from a checkpoint."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from funcnets import data, metrics, runs
from funcnets.cli import configuration
from funcnets.cli.configuration import UsageError
from funcnets.cli.fit_check import create_train_state
from funcnets.core import Layer
from funcnets.data import DataError, Dataset
from funcnets.optim import Optimizer
from funcnets.precision import available
from funcnets.runs import Config, RunDirectory, RunError, SweepConfig
from funcnets.runs.directory import environment
from funcnets.train import TrainState


@dataclass(frozen=True)
class Setup:
    """A training that is ready to go on, from its first step or from a checkpoint.

    Attributes:
        rows: the measurements of the epochs that are done.
        running: the averages over the epoch that is half done, from which `fit` goes on.
        notes: lines that tell what is special about this start.
        warnings: lines that warn of something in the run directory.
    """

    config: Config
    directory: RunDirectory
    dataset: Dataset
    net: Layer
    optimizer: Optimizer
    train_state: TrainState
    rows: tuple[Any, ...] = ()
    running: Any = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return batches_per_epoch(self.config, self.dataset)

    @property
    def step_name(self) -> str:
        """Name under which the compiled training step is saved: all that it is made of.

        The shapes of its arguments are left out, as `jit` adds them.
        """
        config = self.config
        schedule = (config.schedule, config.learning_rate, config.epochs * self.batches)
        return f"train {(config.network, *schedule, config.side, config.precision)}"


def begin(given: Mapping[str, Any], path: Path | None = None, *, download: bool = False) -> Setup:
    """Return a new training, or a new sweep if `seeds` is given, in a new run directory.

    `given` has values by field of the configuration.  Raises ValueError, as a UsageError, RunError
    or DataError, if it can't be trained like this.
    """
    config = configuration.configure(given)
    config = replace(config, data=find_data(given.get("data"), download=download))
    dataset, net, optimizer = build(config)
    train_state = create_train_state(config, net, optimizer, dataset)
    directory = RunDirectory.create(config, path)
    return Setup(config, directory, dataset, net, optimizer, train_state)


def resume(given: Mapping[str, Any], path: Path | None = None, *, download: bool = False) -> Setup:
    """Return the training in `path`, or else of the network `given`, from its newest checkpoint on.

    Raises UsageError if `given` contradicts it or it is finished, RunError if it has no
    checkpoint, CheckpointError if the checkpoint is damaged.
    """
    if path is None:
        directory = RunDirectory.newest(configuration.configure(given))
    else:
        directory = RunDirectory(path)
    before = read_training_config(directory)
    if "data" in given or download:
        given = {**given, "data": find_data(given.get("data", before.data), download=download)}
    config = configuration.resumed(before, given)
    setup = restore(directory, config)
    steps = runs.steps_done(setup.train_state)
    done = steps // setup.batches
    if done >= config.epochs:
        raise UsageError(
            f"{directory.path}: finished with epoch {done} of {config.epochs}; to train longer "
            + (f"add --epochs {2 * done}" if config.schedule == "constant" else _START_NEW)
        )
    rows = tuple(row for row in directory.read_rows() if row.epoch <= done)
    notes = (f"resuming at step {steps}", *_changes(directory, config))
    directory.write_config(config)
    directory.write_rows(rows)
    return replace(setup, rows=rows, notes=notes)


def open_run(path: Path, given: Mapping[str, Any]) -> Setup:
    """Return the training in `path` as its newest checkpoint has it, to be evaluated.

    `given` may name other `data` and another `device` than the run's.  Raises UsageError, RunError,
    DataError or CheckpointError if one of them, the run or its checkpoint can't be used.
    """
    directory = RunDirectory(path)
    config = replace(read_training_config(directory), **given)
    if config.precision not in available(config.device):
        # `auto`, stopped before it had chosen or learned anything, or a GPU's, away from GPUs.
        config = replace(config, precision="float32")
    configuration.check_device(config.device)
    return restore(directory, config)


_START_NEW = "start a new run with more --epochs: the rate of this one has come to its end"


def read_training_config(directory: RunDirectory) -> Config:
    """Return the configuration of a training.  Raises RunError for none, or that of a sweep."""
    config = directory.read_config()
    if isinstance(config, SweepConfig):
        raise RunError(
            f"{directory.path}: holds a sweep, which can't be resumed or evaluated; "
            "metrics.csv has what it measured"
        )
    return config


def _changes(directory: RunDirectory, config: Config) -> Iterator[str]:
    """Yield a line for each thing that isn't as it was when the run was last started."""
    before, now = directory.read_environment(), environment(config)
    for name in now:
        if name in before and before[name] != now[name]:
            yield f"{name} was {before[name]} and is {now[name]}: last digits may differ"


def find_data(directory: str | None, *, download: bool = False) -> str:
    """Return the value of `Config.data` for what was given on the command line."""
    place = data.find(directory, download=download)
    return "bundled" if place == data.BUNDLED else str(place.absolute())


def batches_per_epoch(config: Config, dataset: Dataset) -> int:
    """Return the number of batches an epoch, the short last one included."""
    return math.ceil(len(dataset.train_labels) / config.batch_size)


def build(config: Config) -> tuple[Dataset, Layer, Optimizer]:
    """Return the data, the network and the optimizer of a configuration."""
    dataset = data.load(config.data, device=config.device)
    if config.limit_train is not None:
        dataset = limited(dataset, config.limit_train)
    net, optimizer = runs.build(config, config.epochs * batches_per_epoch(config, dataset))
    return dataset, net, optimizer


def limited(dataset: Dataset, count: int) -> Dataset:
    """Return the first training images, as `data.limit` does.  Raises UsageError if too many."""
    try:
        return data.limit(dataset, count)
    except DataError:
        most = len(dataset.train_labels)
        raise UsageError(
            f"--limit-train is {count}; expected 1 to {most}, the number of images: "
            f"{dataset.source}"
        ) from None


def restore(directory: RunDirectory, config: Config) -> Setup:
    """Return the training of the newest checkpoint, on the configured device."""
    dataset, net, optimizer = build(config)
    found = directory.latest_checkpoint()
    train_state, metadata = runs.read_train_state(found, config, net, optimizer)
    running = metrics.Running(**metadata["running"])
    return Setup(
        config,
        directory,
        dataset,
        net,
        optimizer,
        train_state,
        running=running,
        warnings=directory.warnings(),
    )
