"""What the examples may be given: anything else ends them with one line and the exit code 2."""

import argparse
import os
from pathlib import Path

from funcnets import data


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, 1 or more")
    return int(text)


def picture(text: str) -> str:
    """A file in a directory that is there: it is written when all else is done."""
    place = Path(text).parent
    if not os.access(place, os.W_OK) or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}; expected a file in a directory to write to")
    return text


def dataset(parser: argparse.ArgumentParser, options: argparse.Namespace) -> data.Dataset:
    """The images of `--data`, the first `--limit-train` of those to train on if it is given."""
    try:
        found = data.load(options.data)
        return found if options.limit_train is None else data.limit(found, options.limit_train)
    except data.DataError as error:
        parser.error(str(error))
