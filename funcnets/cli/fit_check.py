"""Check, before a training begins, that its network can be trained on its batches."""

from collections.abc import Iterable

import torch
from torch import Tensor

from funcnets import random, runs, tree
from funcnets.cli.configuration import UsageError
from funcnets.core import Layer, LayerError, Params, State
from funcnets.data import Dataset, memory
from funcnets.optim import Optimizer
from funcnets.runs import Config, SweepConfig
from funcnets.runs.networks import is_imported
from funcnets.train import TrainState

LARGEST_SIDE_TRIED = 512
BYTES_OF_A_PIXEL = 4  # in float32


def create_train_state(
    config: Config, net: Layer, optimizer: Optimizer, dataset: Dataset, processes: int = 1
) -> TrainState:
    """Return the state before the first step, after a forward pass on a batch of each size.

    Batch norms that are not synchronised see a process's share of the batch.

    Raises UsageError unless `net` can be trained on every batch, the short last one too; the
    message has the smallest side that works.
    """
    _check_memory(config, dataset)
    _check_logits(config, net)
    shares = 1 if config.sync_batch_norm else processes
    sizes = _batch_sizes(config, dataset, shares)
    try:
        train_state = runs.create_train_state(config, net, optimizer)
        params, state, key = train_state.params, train_state.state, train_state.key
        if isinstance(config, SweepConfig):
            params, state, key = tree.map(lambda leaf: leaf[0], (params, state, key))
        _apply(net, params, state, key, _image(config, config.side, config.device), sizes)
    except LayerError as error:
        raise UsageError(_message(net, config, dataset, shares, sizes, error)) from None
    return train_state


def _check_memory(config: Config, dataset: Dataset) -> None:
    """Raise UsageError if not even the images of one batch fit into memory, at this side."""
    count = min(config.accumulate or config.batch_size, len(dataset.train_labels))
    size = BYTES_OF_A_PIXEL * count * config.channels * config.side**2
    free = memory.available(config.device)
    if free is not None and size > free:
        raise UsageError(
            f"--side is {config.side}: {count} images of that side take {size / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB of memory are free; take a smaller side or --batch-size"
        )


def _message(
    net: Layer,
    config: Config,
    dataset: Dataset,
    shares: int,
    sizes: Iterable[int],
    error: LayerError,
) -> str:
    smallest = _smallest_side(config, net, sizes, config.side)
    hint = f"; the smallest --side that works is {smallest}" if smallest else ""
    if 1 in sizes and _works(config, net, {2}, config.side):
        problem = _one_image(config, dataset, shares, error)
    else:
        problem = f"at --side {config.side} and --batch-size {config.batch_size}: {error}"
    return f"{config.network} can't be trained {problem}{hint}"


def _one_image(config: Config, dataset: Dataset, shares: int, error: LayerError) -> str:
    """Return the message where only a batch, or a share of one, of a single image is in the way."""
    count = len(dataset.train_labels)
    alone = "the last batch has" if count > config.batch_size > 1 else "a batch has"
    if shares > 1:
        alone = f"with --no-sync-bn one of {shares} processes has"
    return (
        f"on {count:,} images in batches of {config.batch_size}: {alone} one image, from which "
        f"{'.'.join(error.path)} has no variance; choose another --limit-train or --batch-size"
    )


def _batch_sizes(config: Config, dataset: Dataset, shares: int) -> set[int]:
    """Return the sizes of the shares of batches, from 1 to 2.

    A network that takes two images takes more, and an empty share becomes one image.
    """
    count = len(dataset.train_labels)
    sizes = min(config.batch_size, count), count % config.batch_size or config.batch_size
    divided = (share for size in sizes for share in (size // shares, -(-size // shares)))
    return {min(max(share, 1), 2) for share in divided}


def _image(config: Config, side: int, device: str) -> Tensor:
    return torch.zeros(1, config.channels, side, side, device=device)


def _apply(
    net: Layer, params: Params, state: State, key: Tensor, image: Tensor, sizes: Iterable[int]
) -> None:
    """Apply `net` in training to a batch of each size.  Raises LayerError if it can't be."""
    for size in sizes:
        net.apply(params, state, image.expand(size, -1, -1, -1), train=True, key=key)


def _check_logits(config: Config, net: Layer) -> None:
    """Raise UsageError unless a network gives logits for the classes of the data.

    Those of the index do; nothing is computed.
    """
    if not is_imported(config.network):
        return
    key, image = random.key(0, "meta"), _image(config, config.side, "meta").expand(2, -1, -1, -1)
    expected = (2, len(config.class_names))
    try:
        y, _ = net.apply(*net.init(key, image), image, train=True, key=key)
        problem = f"gives an output of shape {tuple(y.shape)}" if y.shape != expected else ""
    except LayerError:  # which is raised again on the images
        return
    except Exception as error:  # a module's own
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if problem:
        raise UsageError(
            f"{config.network} can't be trained on images of shape {tuple(image.shape)}: "
            f"{problem}; expected logits of shape {expected}"
        )


def _works(config: Config, net: Layer, sizes: Iterable[int], side: int) -> bool:
    """True if `net` can be trained on batches of these sizes; nothing is computed."""
    key, image = random.key(0, "meta"), _image(config, side, "meta")
    try:
        _apply(net, *net.init(key, image), key, image, sizes)
    except LayerError:
        return False
    return True


def _smallest_side(config: Config, net: Layer, sizes: Iterable[int], too_small: int) -> int | None:
    """Return the smallest side above `too_small` that `net` can be trained at, by bisection."""
    works = LARGEST_SIDE_TRIED + 1
    while works - too_small > 1:
        side = (works + too_small) // 2
        if _works(config, net, sizes, side):
            works = side
        else:
            too_small = side
    return works if works <= LARGEST_SIDE_TRIED else None
