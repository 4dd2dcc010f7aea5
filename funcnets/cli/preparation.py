"""A training that is ready to go on: begun in a new run directory, or resumed from a checkpoint."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from funcnets import checkpoint, data, metrics, models, optim, random, train, tree
from funcnets.cli import configuration
from funcnets.cli.fit_check import example, fitting, try_batches
from funcnets.core import Layer
from funcnets.data import DataError, Dataset
from funcnets.optim import Optimizer
from funcnets.precision import available
from funcnets.runs import directory as run_directory
from funcnets.runs.config import SCHEDULES, Config, Row, UsageError
from funcnets.runs.directory import Run
from funcnets.train import TrainState


@dataclass(frozen=True)
class Session:
    """A training that is ready to go on, from its first step or from a checkpoint."""

    config: Config
    directory: Run
    dataset: Dataset
    net: Layer
    optimizer: Optimizer
    train_state: TrainState
    rows: tuple[Row, ...] = ()
    running: Any = field(default_factory=metrics.Running)  # what the loop goes on from
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self.dataset.train_labels) / self.config.batch_size)

    @property
    def step_name(self) -> str:
        """All that the training step is made of, but for the shapes of its arguments."""
        config = self.config
        schedule = (config.schedule, config.learning_rate, config.epochs * self.batches)
        return f"train {(config.network, *schedule, config.side, config.precision)}"


def begin(given: Mapping[str, Any], path: Path | None = None, *, download: bool = False) -> Session:
    """A new training in a new run directory, by the values `given` for the fields of `Config`.

    Raises UsageError, DataError or LayerError where it can't be trained like this.
    """
    config = configuration.configure(given)
    config = replace(config, data=find_data(given.get("data"), download=download))
    dataset, net, make = load(config)
    optimizer = make(config.learning_rate)
    with fitting(net, config, dataset):
        train_state = _create(net, optimizer, config, config.device)
        try_batches(net, train_state, config, dataset)
    return Session(config, run_directory.create(path, config), dataset, net, optimizer, train_state)


def resume(
    given: Mapping[str, Any], path: Path | None = None, *, download: bool = False
) -> Session:
    """The training in `path`, or of the network `given`, from its newest checkpoint on.

    Raises UsageError where `given` contradicts it, or it has no checkpoint, or is finished;
    CheckpointError where the checkpoint is damaged.
    """
    directory = Run(
        run_directory.newest_default(configuration.configure(given)) if path is None else path
    )
    before = directory.read_config()
    if "data" in given or download:
        given = {**given, "data": find_data(given.get("data", before.data), download=download)}
    config = configuration.resumed(before, given)
    session = _restore(directory, config)
    done = int(session.train_state.step) // session.batches
    if done >= config.epochs:
        raise UsageError(
            f"{directory.path}: finished with epoch {done} of {config.epochs}; to train longer "
            + (f"add --epochs {2 * done}" if config.schedule == "constant" else _LONGER)
        )
    rows = tuple(row for row in directory.read_rows() if row.epoch <= done)
    notes = (
        f"resuming at step {int(session.train_state.step)}",
        *_changes(directory, config),
    )
    directory.write_config(config)
    directory.write_rows(rows)
    return replace(session, rows=rows, notes=notes)


def open_run(path: Path, given: Mapping[str, Any]) -> Session:
    """The training in `path` as its newest checkpoint has it, to be evaluated.

    `given` may name other `data` and another `device` than the run's.  Raises UsageError, DataError
    or CheckpointError where one of them, the run or its checkpoint can't be used.
    """
    config = replace(Run(path).read_config(), **given)
    if config.precision not in available(config.device):
        # `auto`, stopped before it had chosen or learned anything, or a GPU's, away from GPUs.
        config = replace(config, precision="float32")
    configuration.check(config)
    return _restore(Run(path), config)


_LONGER = "start a new run with more --epochs: the rate of this one has come to its end"


def _changes(directory: Run, config: Config) -> Iterator[str]:
    before, now = directory.read_environment(), run_directory.environment(config)
    for name in now:
        if name in before and before[name] != now[name]:
            yield f"{name} was {before[name]} and is {now[name]}: last digits may differ"


def find_data(directory: str | None, *, download: bool = False) -> str:
    """The value of `Config.data` for what was given on the command line."""
    place = data.find(directory, download=download)
    return "bundled" if place == data.BUNDLED else str(place.absolute())


def load(config: Config) -> tuple[Dataset, Layer, Callable[[float], Optimizer]]:
    """The data, the network, and the configured optimizer as a function of the learning rate."""
    dataset = data.load(config.data, device=config.device)
    if config.limit_train is not None:
        dataset = limited(dataset, config.limit_train)
    net, _ = models.get(config.network)
    steps = config.epochs * math.ceil(len(dataset.train_labels) / config.batch_size)
    return dataset, net, lambda rate: optim.sgd(SCHEDULES[config.schedule](rate, steps))


def limited(dataset: Dataset, count: int) -> Dataset:
    """As `data.limit`; UsageError where there aren't as many training images."""
    try:
        return data.limit(dataset, count)
    except DataError:
        available = len(dataset.train_labels)
        raise UsageError(
            f"--limit-train is {count}; expected 1 to {available}, the number of images: "
            f"{dataset.source}"
        ) from None


def _create(net: Layer, optimizer: Optimizer, config: Config, device: str) -> TrainState:
    x = example(config.side, device)
    return train.create(net, optimizer, random.key(config.seed, device), x)


def _restore(directory: Run, config: Config) -> Session:
    """The training of the newest checkpoint, on the configured device."""
    dataset, net, make = load(config)
    optimizer = make(config.learning_rate)
    like = _create(net, optimizer, config, "meta")
    train_state, metadata = checkpoint.load(directory.latest_checkpoint(), like)
    train_state = tree.map(lambda leaf: leaf.to(config.device), train_state)
    running = metrics.Running(**metadata["running"])
    return Session(
        config,
        directory,
        dataset,
        net,
        optimizer,
        train_state,
        running=running,
        warnings=directory.warnings(),
    )
