"""Errors of the command line: one line each, and an exit code."""

import typer

# click's ClickException, which is in another place in each version of typer.
CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def error_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    message = str(getattr(error, "format_message", error.__str__)())
    # Where typer leaves out what was given, the error that it had from pydantic has it.
    details = getattr(error.__cause__, "errors", None)
    if isinstance(error, CommandLineError) and details is not None:
        message = f"{message}; given was {details()[0]['input']!r}"
    return " ".join(message.split()) or repr(error)


def exit_code(error: Exception) -> int:
    """Return 2 for bad arguments and files, else 1, or that of the process that failed."""
    if isinstance(error, (CommandLineError, ValueError, OSError)):
        return 2
    return int(getattr(error, "exit_code", 1))
