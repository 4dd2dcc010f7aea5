"""Command-line arguments of the examples: misuse ends an example with one line and exit code 2."""

import argparse
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from funcnets import data, models, random
from funcnets.compiler.backends.select import BACKENDS
from funcnets.core import Layer, LayerError

NETWORKS = tuple(name for name, entry in models.INDEX.items() if entry.is_benchmarked)
RECIPES = ("reference", "tuned", "best")


def positive(text: str) -> int:
    """Parse a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, 1 or more")
    return int(text)


def _number(accept: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and accept(value)):
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return value

    return parse


non_negative = _number(lambda value: value >= 0, "a number, 0 or more")
above_zero = _number(lambda value: value > 0, "a number above 0")
fraction = _number(lambda value: 0 <= value < 1, "a number in [0, 1)")


def new_file(text: str) -> str:
    """Parse the path of a file to write, in a directory that can be written to."""
    directory = Path(text).parent
    if not os.access(directory, os.W_OK) or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}; expected a file in a directory to write to")
    return text


def existing_file(text: str) -> Path:
    """Parse the path of a file to read."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r}; there is no such file")
    return Path(text)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the arguments that examples share."""

    def __init__(self, documentation: str | None) -> None:
        super().__init__(description=(documentation or "").partition("\n")[0])

    def error(self, message: str) -> NoReturn:
        """End the example with one line."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def add_data(self, default: str | None = "bundled") -> None:
        """Add `--data`."""
        self.add_argument("--data", default=default, help="a directory, or `bundled`")

    def add_limit(self, default: int | None = None) -> None:
        """Add `--limit-train`."""
        self.add_argument("--limit-train", type=positive, default=default, help="training images")

    def add_backend(self, *others: str, default: str | None = None) -> None:
        """Add `--backend`, of `funcnets.jit`."""
        self.add_argument("--backend", choices=(*BACKENDS, *others), default=default)

    def add_training(self, epochs: int, limit: int | None = None) -> None:
        """Add `--epochs`, `--limit-train`, `--data` and `--backend`."""
        self.add_argument("--epochs", type=positive, default=epochs, help=f"default {epochs}")
        self.add_inputs(limit)

    def add_inputs(self, limit: int | None = None) -> None:
        """Add `--limit-train`, `--data` and `--backend`."""
        self.add_limit(limit)
        self.add_data()
        self.add_backend()

    def add_picture(self, default: str | None) -> None:
        """Add `--picture`, the file to draw to."""
        self.add_argument("--picture", type=new_file, default=default, help="a PNG or SVG file")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse the arguments; end the example if it is to draw, and matplotlib isn't installed."""
        options = self.parse_args(argv)
        if getattr(options, "picture", None) and not importlib.util.find_spec("matplotlib"):
            self.error("drawing needs matplotlib: pip install matplotlib")
        return options

    def load_data(self, directory: str | None, limit: int | None = None) -> data.Dataset:
        """Return the images of `--data`, with the first `limit` to train on."""
        try:
            dataset = data.load(directory)
            return dataset if limit is None else data.limit(dataset, limit)
        except data.DataError as error:
            self.error(str(error))

    def check_side(self, net: Layer, side: int, channels: int = 1) -> None:
        """End the example unless images of this side are large enough for the network."""
        x = torch.empty(1, channels, side, side, device="meta")
        try:
            net.init(random.key(0, "meta"), x)
        except LayerError as error:
            self.error(f"argument --side: {side}; {error}")
