"""Optional packages, which extras of the package install."""

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A package that an extra installs isn't there; one line that says how to install it."""

    exit_code = 2  # of the command line


def require(module: str, extra: str, purpose: str) -> Any:
    """Return a module of an optional package.

    Raises MissingExtraError if it isn't installed: `purpose` needs it, and `extra` installs it.

    >>> from funcnets import _extras
    >>> _extras.require("no_such_package", "plots", "drawing")
    Traceback (most recent call last):
        ...
    funcnets._extras.MissingExtraError: drawing needs no_such_package, which isn't installed: \
pip install 'funcnets[plots]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{purpose} needs {error.name}, which isn't installed: pip install 'funcnets[{extra}]'"
        ) from None
