"""Data of a training: found, loaded, described in its configuration, and compared with it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from funcnets import data, random
from funcnets.cli.configuration import UsageError
from funcnets.data import DataError, Dataset, MissingDataError
from funcnets.data.named import FASHION_MNIST, NAMED, IdxSet
from funcnets.data.places import FASHION, FOLDER, IDX
from funcnets.parallel import Processes, share_in_memory
from funcnets.runs import Config, networks

NATIVE_SIDE = 28  # pixels; a recipe with this side takes images as large as they are


def find(given: Mapping[str, Any], *, download: bool | None = None) -> dict[str, Any]:
    """Return the fields `dataset` and `data` of a configuration for what was given.

    Without a name a directory may have any IDX files; without both Fashion-MNIST is searched.
    `download` is None for a command that has no such option.

    Raises UsageError, which names the options, for files that are missing.
    """
    directory, name = given.get("data"), given.get("dataset")
    if name is None:
        name = IDX if directory or os.environ.get("FUNCNETS_DATA") else FASHION
    try:
        place = data.find(directory, dataset=name, download=bool(download))
    except MissingDataError as error:
        flags = "--data DIR" if download is None else "--data DIR or --download"
        raise UsageError(f"{error}: {flags}") from None
    if name.startswith(FOLDER):
        name = f"{FOLDER}{place.absolute()}"
    return {
        "dataset": name,
        "data": "bundled" if place == data.BUNDLED else str(place.absolute()),
    }


def moved(config: Config, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was given with the name of a run's data, if only their directory was given.

    Without the name, a directory is one of IDX files.

    >>> from funcnets import runs
    >>> from funcnets.cli import run_data
    >>> config = runs.Config.from_recipe("lenet_bn", dataset="folder:/photos")
    >>> run_data.moved(config, {"data": "new"})
    {'data': 'new', 'dataset': 'folder:new'}
    """
    directory = given.get("data", "bundled")
    if "dataset" in given or directory == "bundled":
        return given
    if config.dataset.startswith(FOLDER):
        return {**given, "dataset": f"{FOLDER}{directory}"}
    is_of_idx_files = isinstance(NAMED.get(config.dataset, FASHION_MNIST), IdxSet)
    return given if is_of_idx_files else {**given, "dataset": config.dataset}


def check_there(config: Config, run: Path) -> None:
    """Raise UsageError, which names the option that mends it, if a run's data are gone."""
    try:
        if config.data != "bundled":
            os.stat(config.data)
    except FileNotFoundError:
        raise UsageError(
            f"{run}: its images were in {config.data}, which isn't there any more; if they were "
            "moved, give their directory: --data DIR"
        ) from None
    except OSError:
        return  # the reader of the data says more about it


def load(config: Config, processes: Processes, *, is_new: bool = False) -> Dataset:
    """Return the data of a configuration; on a CPU, processes of one machine share the memory.

    If the run `is_new`, and its recipe needs no certain side, images in folders keep their own.
    """
    side = None if is_new and _takes_any_side(config) else config.side

    def read(device: str) -> Dataset:
        return data.load(config.data, dataset=config.dataset, side=side, device=device)

    if config.device.startswith("cpu"):
        values = share_in_memory(processes, lambda: vars(read("cpu")))
        return Dataset(**values)
    return processes.together(lambda: read(config.device))


def _takes_any_side(config: Config) -> bool:
    """True if nobody chose the side, and the recipe has the usual one."""
    recipe = networks.recipe(config.network, config.recipe)
    return config.side == recipe.side == NATIVE_SIDE


def limited(config: Config, dataset: Dataset) -> Dataset:
    """Return the training images that are used, as `data.limit` does.

    Raises UsageError if they are too many.
    """
    if config.limit_train is None:
        return dataset
    try:
        return data.limit(dataset, config.limit_train)
    except DataError:
        most = len(dataset.train_labels)
        raise UsageError(
            f"--limit-train is {config.limit_train}; expected 1 to {most}, the number of images: "
            f"{dataset.source}"
        ) from None


def divided(config: Config, dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Return the data that are trained on, and those that are measured after each epoch.

    The latter are other training images if the configuration has a validation part, the same ones
    for every seed.  Raises UsageError if too many images are asked for, or too few are left.
    """
    used = limited(config, dataset)
    if not config.validation:
        return used, used
    try:
        return data.hold_out(used, config.validation, random.key(0))
    except DataError as error:
        raise UsageError(f"--validation is {config.validation}: {error}") from None


def described(config: Config, dataset: Dataset, given: Mapping[str, Any]) -> Config:
    """Return the configuration of a new training with the facts about its data.

    The side becomes that of the images if nobody chose one and the recipe needs no certain one.
    """
    used, _ = divided(config, dataset)
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "class_names": dataset.class_names,
        "channels": dataset.channels,
        "fingerprint": data.fingerprint(dataset),
    }
    if config.normalize:
        facts["mean"], facts["deviation"] = data.moments(used.train_images)
    if given.get("side") is None and _takes_any_side(config):
        facts["side"] = max(dataset.sides)
    return replace(config, **facts)


def check_same(config: Config, dataset: Dataset) -> None:
    """Raise UsageError unless the data are those on which a run was begun, if that is known."""
    if config.fingerprint is None:
        return
    found = data.fingerprint(dataset)
    if found != config.fingerprint:
        raise UsageError(
            f"--data {config.data}: other images or labels than the run was trained on (their "
            f"fingerprint is {found}; expected {config.fingerprint}); give the directory that has "
            "those, or start a new run"
        )


def check_fits(config: Config, dataset: Dataset) -> None:
    """Raise UsageError unless a run's network can be evaluated on these data."""
    known = len(config.class_names)
    if dataset.channels != config.channels:
        raise UsageError(
            f"--data {config.data}: images of {_channels(dataset.channels)}, but the run was "
            f"trained on images of {config.channels}; give others"
        )
    is_named = config.dataset.startswith(FOLDER)
    if dataset.classes > known or (is_named and dataset.class_names != config.class_names):
        raise UsageError(
            f"--data {config.data}: {dataset.classes} classes ({shown(dataset.class_names)}), but "
            f"the run was trained on {known} ({shown(config.class_names)}); give others"
        )


def shown(names: tuple[str, ...], width: int = 60) -> str:
    """Return the names of classes, the first and the last if all have no room.

    >>> from funcnets.cli import run_data
    >>> run_data.shown(("ant", "bee", "cat"))
    'ant, bee, cat'
    >>> run_data.shown(tuple("abcdefgh"), width=12)
    'a, b ... h'
    """
    whole = ", ".join(names)
    if len(whole) <= width:
        return whole
    first = list(names[:-1])
    while len(first) > 1 and len(f"{', '.join(first)} ... {names[-1]}") > width:
        first.pop()
    return f"{', '.join(first)} ... {names[-1]}"


def unlike_fashion_mnist(dataset: Dataset) -> str:
    """Return the warning about IDX files that nobody named and that aren't Fashion-MNIST's."""
    size = " x ".join(map(str, dataset.sides))
    return (
        f"these files aren't Fashion-MNIST's: {dataset.classes} classes, {size} pixels, "
        f"{_channels(dataset.channels)}"
    )


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"
