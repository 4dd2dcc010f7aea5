"""A training that is ready to go on: begun in a new run directory, or resumed from a checkpoint."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcnets import checkpoint, data, metrics, models, optim, random, run, train, tree
from funcnets.core import Layer, LayerError, Params, State
from funcnets.data import DataError, Dataset
from funcnets.optim import Optimizer
from funcnets.precision import available
from funcnets.run import SCHEDULES, Config, Row, Run, UsageError
from funcnets.train import TrainState

LARGEST_SIDE_TRIED = 512


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
    config = run.configure(given)
    config = replace(config, data=find_data(given.get("data"), download=download))
    dataset, net, make = load(config)
    optimizer = make(config.learning_rate)
    with fitting(net, config, dataset):
        train_state = _create(net, optimizer, config, config.device)
        try_batches(net, train_state, config, dataset)
    return Session(config, run.create(path, config), dataset, net, optimizer, train_state)


def resume(
    given: Mapping[str, Any], path: Path | None = None, *, download: bool = False
) -> Session:
    """The training in `path`, or of the network `given`, from its newest checkpoint on.

    Raises UsageError where `given` contradicts it, or it has no checkpoint, or is finished;
    CheckpointError where the checkpoint is damaged.
    """
    directory = Run(run.newest_default(run.configure(given)) if path is None else path)
    before = directory.read_config()
    if "data" in given or download:
        given = {**given, "data": find_data(given.get("data", before.data), download=download)}
    config = run.resumed(before, given)
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
    run.check(config)
    return _restore(Run(path), config)


_LONGER = "start a new run with more --epochs: the rate of this one has come to its end"


def _changes(directory: Run, config: Config) -> Iterator[str]:
    before, now = directory.read_environment(), run.environment(config)
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


def example(side: int, device: str) -> Tensor:
    """A batch of one black image."""
    return torch.zeros(1, 1, side, side, device=device)


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


@contextlib.contextmanager
def fitting(net: Layer, config: Config, dataset: Dataset) -> Iterator[None]:
    """Around what raises LayerError where `net` can't be trained: that is UsageError, with a hint.

    The hint is the smallest side that works.
    """
    try:
        yield
    except LayerError as error:
        sizes = _batch_sizes(config, dataset)
        smallest = _smallest_side(net, sizes, config.side)
        hint = f"; the smallest --side that works is {smallest}" if smallest else ""
        if 1 in sizes and _works(net, {2}, config.side):
            problem = _one_image(config, dataset, error)
        else:
            problem = f"at --side {config.side} and --batch-size {config.batch_size}: {error}"
        raise UsageError(f"{config.network} can't be trained {problem}{hint}") from None


def _one_image(config: Config, dataset: Dataset, error: LayerError) -> str:
    """What is said where the network could be trained, were no batch of one image alone."""
    count = len(dataset.train_labels)
    alone = "the last batch has" if count > config.batch_size else "a batch has"
    return (
        f"on {count:,} images in batches of {config.batch_size}: {alone} one image, from which "
        f"{'.'.join(error.path)} has no variance; choose another --limit-train or --batch-size"
    )


def try_batches(net: Layer, train_state: TrainState, config: Config, dataset: Dataset) -> None:
    """Raise LayerError unless `net` can be trained on batches, and on the last, short one."""
    params, state, key = train_state.params, train_state.state, train_state.key
    image = example(config.side, config.device)
    _try_sizes(net, params, state, key, image, _batch_sizes(config, dataset))


def _batch_sizes(config: Config, dataset: Dataset) -> set[int]:
    """Those of a training; as any batch of two images or more is alike, none is larger."""
    count = len(dataset.train_labels)
    sizes = min(config.batch_size, count), count % config.batch_size or config.batch_size
    return {min(size, 2) for size in sizes}


def _works(net: Layer, sizes: Iterable[int], side: int) -> bool:
    """Whether `net` can be trained on batches of these sizes; nothing is computed."""
    key, image = random.key(0, "meta"), example(side, "meta")
    try:
        _try_sizes(net, *net.init(key, image), key, image, sizes)
    except LayerError:
        return False
    return True


def _try_sizes(
    net: Layer, params: Params, state: State, key: Tensor, image: Tensor, sizes: Iterable[int]
) -> None:
    for size in sizes:
        net.apply(params, state, image.expand(size, -1, -1, -1), train=True, key=key)


def _smallest_side(net: Layer, sizes: Iterable[int], too_small: int) -> int | None:
    """The least side above `too_small` with which `net` can be trained, found by bisection."""
    works = LARGEST_SIDE_TRIED + 1
    while works - too_small > 1:
        side = (works + too_small) // 2
        if _works(net, sizes, side):
            works = side
        else:
            too_small = side
    return works if works <= LARGEST_SIDE_TRIED else None
