"""Initial values of a training: random, or those of another run or a file of weights."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from funcnets import interop, runs, tree
from funcnets.cli.configuration import UsageError
from funcnets.cli.fit_check import create_train_state
from funcnets.core import Layer, Params, State
from funcnets.data import Dataset
from funcnets.optim import Optimizer
from funcnets.runs import Config, SweepConfig
from funcnets.train import TrainState

NAMES_SHOWN = 5


def create(
    config: Config, net: Layer, optimizer: Optimizer, dataset: Dataset, processes: int = 1
) -> tuple[TrainState, tuple[str, ...]]:
    """Return the state before the first step, and lines that tell which values were taken.

    Raises UsageError if the network can't be trained, or nothing in `config.init_from` fits it.
    """
    train_state = create_train_state(config, net, optimizer, dataset, processes)
    if config.init_from is None:
        return train_state, ()
    own = (train_state.params, train_state.state)
    try:
        found = interop.transplant(_read(config.init_from), own)
    except interop.InteropError as error:
        raise UsageError(f"--init-from {config.init_from}: {error}") from None
    params, state = tree.map(
        lambda new, old: new.to(old.device, old.dtype), (found.params, found.state), own
    )
    lines = [f"{len(found.taken)} tensors from {config.init_from}"]
    for names, what in ((found.new, "begin with random values"), (found.left, "weren't taken")):
        if names:
            lines.append(f"{_listed(names)} {what}")
    return train_state._replace(params=params, state=state), tuple(lines)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read(source: str) -> tuple[Params, State]:
    """Return the parameters and statistics of a run, or of a file in safetensors' form or torch's.

    Raises UsageError for another file, or one that can't be read.
    """
    path = Path(source)
    if path.is_dir():
        loaded = runs.load(path)
        if isinstance(loaded.config, SweepConfig):
            raise UsageError(f"--init-from {source}: holds a sweep, of many networks; give a run")
        return loaded.params, loaded.state
    try:
        named: Any = None
        if path.suffix == ".safetensors":
            named = load_file(path)
        else:
            named = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = getattr(error, "strerror", None) or (str(error) or "no content").splitlines()[0]
        raise UsageError(f"--init-from {source}: can't be read ({reason})") from None
    if not isinstance(named, dict) or not all(torch.is_tensor(leaf) for leaf in named.values()):
        raise UsageError(f"--init-from {source}: holds no state dict, of tensors by their names")
    return interop.from_state_dict(named)
