"""Check, before a training begins, that the network can be trained at that size."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from funcnets import random
from funcnets.core import Layer, LayerError, Params, State
from funcnets.data import Dataset
from funcnets.runs.config import Config, UsageError
from funcnets.train import TrainState

LARGEST_SIDE_TRIED = 512


def example(side: int, device: str) -> Tensor:
    """A batch of one black image."""
    return torch.zeros(1, 1, side, side, device=device)


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
