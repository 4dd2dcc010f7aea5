"""Networks and train states of configurations, and what the checkpoint of a run kept of them."""

import os
import warnings
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcnets import checkpoint, random, train, tree
from funcnets.core import Layer, Params, State
from funcnets.optim import Optimizer
from funcnets.runs import networks, recipe
from funcnets.runs.config import Config, SweepConfig
from funcnets.runs.directory import RunDirectory, RunError
from funcnets.train import TrainState
from funcnets.transforms import ensemble, with_average


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's network with the parameters and statistics of its newest whole checkpoint.

    Attributes:
        net: the network, in float32; `precision.cast` makes it that of another precision.
        params: its parameters; in a sweep each leaf has a first axis of members.
        state: its batch-norm statistics, of the same form.
        config: the run's configuration, a `SweepConfig` for a sweep.
        step: the training steps that were done.
        checkpoint: the directory that it was read from.
        classes: the name of each class, in the order of the logits.
    """

    net: Layer
    params: Params
    state: State
    config: Config
    step: int
    checkpoint: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class, in the order of the logits."""
        return self.config.class_names

    def prepare(self, images: Tensor) -> Tensor:
        """Return uint8 images (N, C, H, W) as the network takes them; see `recipe.preparation`."""
        return recipe.preparation(self.config)(images)

    def predict(self, images: Tensor) -> Tensor:
        """Return the probability of each class, (N, K), for uint8 images (N, C, H, W).

        A sweep predicts by the mean of its members' probabilities.
        """
        x = self.prepare(images)
        if isinstance(self.config, SweepConfig):
            members = ensemble.member_logits(self.net, self.params, self.state, x)
            return ensemble.combine_logits(members).softmax(1)
        logits, _ = self.net.apply(self.params, self.state, x)
        return logits.softmax(1)


def load(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> LoadedRun:
    """Return the network in the run directory `path`, as its newest whole checkpoint has it.

    Of a run with a validation part it is the checkpoint of the best epoch.  Every byte is checked.
    `LoadedRun.prepare` makes of uint8 images, (N, C, H, W), what the network was trained on:
    floating point, at the run's side, normalised if the run's were.

    Warns if a newer checkpoint is damaged.  Raises RunError if there is no run or no whole
    checkpoint, or its configuration changed since; and CheckpointError if the checkpoint doesn't
    fit or a byte of it changed.

    >>> import tempfile
    >>> from funcnets import runs
    >>> config = runs.Config.from_recipe("lenet_bn", device="cpu")
    >>> net, optimizer = runs.build(config, steps=100)
    >>> directory = runs.RunDirectory.create(config, tempfile.mkdtemp())
    >>> train_state = runs.create_train_state(config, net, optimizer)
    >>> _ = directory.save(0, train_state, metadata={})  # as `funcnets train` does
    >>> loaded = runs.load(directory.path)
    >>> loaded.config.network, loaded.step
    ('lenet_bn', 0)
    >>> x = loaded.prepare(torch.zeros(4, 1, 28, 28, dtype=torch.uint8))
    >>> logits, _ = loaded.net.apply(loaded.params, loaded.state, x)
    >>> logits.shape, loaded.classes[0]
    (torch.Size([4, 10]), 'T-shirt/top')
    >>> loaded.predict(torch.zeros(4, 1, 28, 28, dtype=torch.uint8)).shape
    torch.Size([4, 10])
    """
    directory = RunDirectory(path)
    config = directory.read_config()
    net, optimizer = build(config, steps=1)  # their number changes no shape
    found, train_state, _ = read_newest(directory, config, net, optimizer, device, best=True)
    for text in directory.warnings():
        warnings.warn(text, stacklevel=2)
    params, state = recipe.evaluated(train_state)
    return LoadedRun(net, params, state, config, steps_done(train_state), found)


def build(config: Config, steps: int) -> tuple[Layer, Optimizer]:
    """Return the network and the optimizer of a configuration, for a training of `steps` steps.

    A sweep's optimizer has its learning rate in its state: see `transforms.ensemble.rated`.
    """
    net = build_network(config)
    make = partial(recipe.make_optimizer, config, steps)
    if isinstance(config, SweepConfig):
        return net, ensemble.rated(make, config.learning_rate)
    return net, make(config.learning_rate)


def build_network(config: Config) -> Layer:
    """Return the network of a configuration, with as many logits as there are classes."""
    options = {} if config.dropout is None else {"rate": config.dropout}
    return networks.build(config.network, len(config.class_names), **options)


def create_train_state(
    config: Config, net: Layer, optimizer: Optimizer, device: str | torch.device | None = None
) -> TrainState:
    """Return the state before the first step, on `config.device` or another one.

    That of a sweep has a first axis more in each leaf, one row for each member.
    """
    device = config.device if device is None else device
    image = torch.zeros(1, config.channels, config.side, config.side, device=device)
    if not isinstance(config, SweepConfig):
        train_state = train.create(net, optimizer, random.key(config.seed, device), image)
        average = recipe.make_average(config)
        return train_state if average is None else with_average(train_state, average)
    rates, seeds = zip(*config.members, strict=True)
    keys = torch.stack([random.key(seed, device) for seed in seeds])
    each = torch.tensor(rates, dtype=torch.float64, device=device)
    return ensemble.create(net, optimizer, keys, image, each)


def read_train_state(
    path: Path,
    config: Config,
    net: Layer,
    optimizer: Optimizer,
    device: str | torch.device | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Return the train state and the metadata of a checkpoint, on `config.device` or another.

    Raises CheckpointError if it is damaged, or isn't of such a network and optimizer.
    """
    like = create_train_state(config, net, optimizer, "meta")
    train_state, metadata = checkpoint.load(path, like)
    device = config.device if device is None else device
    return tree.map(lambda leaf: leaf.to(device), train_state), metadata


def read_newest(
    directory: RunDirectory,
    config: Config,
    net: Layer,
    optimizer: Optimizer,
    device: str | torch.device | None = None,
    *,
    best: bool = False,
) -> tuple[Path, TrainState, dict[str, Any]]:
    """Return the newest whole checkpoint of a run: its path, train state and metadata.

    With `best` it is that of the best epoch, if the run has a validation part.  Another process
    may write to the run meanwhile.

    Raises RunError if there is none, or it was trained with another configuration than that in the
    directory; and CheckpointError as `read_train_state` does.
    """

    def read(path: Path) -> tuple[TrainState, dict[str, Any]]:
        try:
            train_state, metadata = read_train_state(path, config, net, optimizer, device)
        except checkpoint.CheckpointError:
            # Another configuration may be why: that says more.
            _check_configuration(directory, path, checkpoint.load(path)[1])
            raise
        _check_configuration(directory, path, metadata)
        return train_state, metadata

    is_chosen = best and config.validation > 0
    read_one = directory.read_best if is_chosen else directory.read_latest
    found, (train_state, metadata) = read_one(read)
    return found, train_state, metadata


def _check_configuration(directory: RunDirectory, found: Path, metadata: dict[str, Any]) -> None:
    """Raise RunError unless the checkpoint was trained with the configuration in the directory."""
    before, now = metadata.get("config"), directory.read_config().fixed
    if not isinstance(before, dict):
        return  # of a version that kept none
    if before.get("precision") == "auto":
        before["precision"] = now["precision"]  # what it chose since
    added = {field.name: field.default for field in fields(Config) if field.name in now}
    usual = {name: value for name, value in added.items() if value is not MISSING}
    before = usual | before  # which may be of a version without some of them
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        listed = ", ".join(f"{name} {now.get(name)} (was {before.get(name)})" for name in changed)
        raise RunError(
            f"{directory.path / 'config.json'}: isn't the configuration of {found.name}, which was "
            f"trained with other values: {listed}; restore it, or start a new run"
        )


def steps_done(train_state: TrainState) -> int:
    """Return the number of steps that were done, the same for all members of a sweep."""
    return int(train_state.step.reshape(-1)[0])
