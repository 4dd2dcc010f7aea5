"""Files of pictures that a command draws where it is asked to."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
MOST_CHARACTERS = 8  # that a warning shows


def require() -> None:
    """Raise MissingExtraError without matplotlib; its remarks on fonts aren't printed."""
    from funcnets import _extras

    _extras.require("matplotlib", "plots", "drawing")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def check(flag: str, path: Path) -> None:
    """Raise an error, before the work begins, unless a picture can be drawn to this file.

    It is ValueError for the name of the file, and MissingExtraError without matplotlib.
    """
    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"{flag} is {str(path)!r}; expected a name that ends in .png or .svg")
    there_already = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not there_already.is_dir() or not os.access(there_already, os.W_OK):
        raise ValueError(f"{flag} is {str(path)!r}; expected a file in a directory to write to")
    require()


def save(flag: str, path: Path, figure: "Figure") -> None:
    """Write a picture, and make its directory.  Raises ValueError if that can't be done."""
    from funcnets import plots

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        missing = plots.save(figure, path)
    except OSError as error:
        raise ValueError(f"{flag} {path}: can't be written ({error.strerror})") from None
    warn_of_missing(missing)


def warn_of_missing(characters: Iterable[str]) -> None:
    """Print one warning about characters that no installed font has; none without any."""
    from funcnets.cli.reporters import Reporter

    if characters := sorted(characters):
        import matplotlib

        shown = [c if c.isprintable() else ascii(c)[1:-1] for c in characters]
        more = " …" if len(shown) > MOST_CHARACTERS else ""
        Reporter().warn(
            f"no installed font has {' '.join(shown[:MOST_CHARACTERS])}{more}: pictures show such "
            "characters as escapes; install a font that has them (Debian: fonts-noto-cjk, "
            f"fonts-symbola), and delete {matplotlib.get_cachedir()}"
        )
