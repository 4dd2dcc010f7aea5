"""Errors of the command line: one line each, and an exit code."""

import difflib
import os
import sys
from typing import Any

import typer

from funcnets.cli import terminal

# click's ClickException, which is in another place in each version of typer.
CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def error_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    message = str(getattr(error, "format_message", error.__str__)())
    # Where typer leaves out what was given, the error that it had from pydantic has it.
    details = getattr(error.__cause__, "errors", None)
    if isinstance(error, CommandLineError) and details is not None:
        message = f"{message}; given was {details()[0]['input']!r}"
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):  # not where its value is missing
        message = f"no option is called {option!r}{_nearest_option(error, option)}"
    return " ".join(message.split()) or repr(error)


def _nearest_option(error: Exception, option: str) -> str:
    """Return a hint at the option of the command that was meant, or at a command that has it."""
    context = getattr(error, "ctx", None)
    if context is None:
        return "; see --help"
    known, given = (
        {name.lstrip("-"): name for name in _options(context.command)},
        option.lstrip("-"),
    )
    if begun := [name for name in known if given and name.startswith(given)]:
        return f": did you mean {known[begun[0]]!r}?"
    commands = getattr(context.find_root().command, "commands", {})
    if having := [name for name, command in commands.items() if option in _options(command)]:
        shown = "train" if "train" in having else having[0]
        return f" in {context.info_name}: funcnets {shown} has it"
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f": did you mean {known[close[0]]!r}?" if close else "; see --help"


def _options(command: Any) -> list[str]:
    return [name for each in command.params for name in each.opts]


def exit_code(error: Exception) -> int:
    """Return 2 for bad arguments and files, else 1, or that of the process that failed."""
    if isinstance(error, (CommandLineError, ValueError, OSError)):
        return 2
    return int(getattr(error, "exit_code", 1))


def is_other_process() -> bool:
    """True in a process of torchrun but the first, which prints what all of them refuse."""
    rank = os.environ.get("RANK", "")
    return os.environ.get("WORLD_SIZE", "1") != "1" and rank.isdecimal() and int(rank) > 0


def report(message: str) -> None:
    """Print a line on standard error."""
    terminal.write(f"funcnets: {message}\n", sys.stderr)
