"""FUNCNETS_DEBUG: what is shown and verified to find errors."""

import os


def is_debugged(word: str) -> bool:
    """True if the environment variable FUNCNETS_DEBUG, words between commas, has this one.

    `1` shows tracebacks in the command line, `verify` verifies graphs after each pass of `jit`, and
    `jit` also prints them; with `donation`, arguments that were donated to `jit` raise when they
    are used again.
    """
    return word in os.environ.get("FUNCNETS_DEBUG", "").replace(" ", "").split(",")
