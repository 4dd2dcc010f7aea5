"""Files of pictures that a command draws where it is asked to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")


def check(flag: str, path: Path) -> None:
    """Raise an error, before the work begins, unless a picture can be drawn to this file.

    It is ValueError for the name of the file, and MissingExtraError without matplotlib.
    """
    from funcnets import _extras

    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"{flag} is {str(path)!r}; expected a name that ends in .png or .svg")
    there_already = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not there_already.is_dir() or not os.access(there_already, os.W_OK):
        raise ValueError(f"{flag} is {str(path)!r}; expected a file in a directory to write to")
    _extras.require("matplotlib", "plots", "drawing")


def save(flag: str, path: Path, figure: "Figure") -> None:
    """Write a picture, and make its directory.  Raises ValueError if that can't be done."""
    from funcnets import plots

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plots.save(figure, path)
    except OSError as error:
        raise ValueError(f"{flag} {path}: can't be written ({error.strerror})") from None
