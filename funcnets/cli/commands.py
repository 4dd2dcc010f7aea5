"""The command line: `funcnets train`, `sweep`, `eval`, `plot` and others."""

import errno
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

import funcnets
from funcnets._debug import is_debugged
from funcnets.cli import (
    bench_command,
    cache_command,
    doctor_command,
    export_command,
    find_lr_command,
    network_commands,
    plot_command,
    predict_command,
    report_command,
    terminal,
    training_commands,
)
from funcnets.cli.errors import error_line, exit_code, is_other_process, report

EPILOG = (
    "Exit codes: 0 done, 1 the training failed, 2 bad arguments or files.  Stopped after saving: "
    "130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, 138 by SIGUSR1, 141 if nobody reads the "
    "output.  A second signal, a second or more after the first, stops at once.  With "
    "FUNCNETS_DEBUG=1 an error shows its traceback, with FUNCNETS_DEBUG=jit compiled steps their "
    "graphs."
)

app = typer.Typer(
    help="Train and examine the classic convolutional networks, on Fashion-MNIST or your images.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"funcnets {funcnets.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            help="Print the version.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    pass


# In the order of `funcnets --help`.
COMMANDS: dict[str, Callable[..., Any]] = {
    "train": training_commands.train_command,
    "sweep": training_commands.sweep_command,
    "eval": training_commands.eval_command,
    "predict": predict_command.predict_command,
    "find-lr": find_lr_command.find_lr_command,
    "plot": plot_command.plot_command,
    "report": report_command.report_command,
    "export": export_command.export_command,
    "summary": network_commands.summary_command,
    "list": network_commands.list_command,
    "bench": bench_command.bench_command,
    "doctor": doctor_command.doctor_command,
    "cache": cache_command.cache_command,
}


def _help(function: Callable[..., Any]) -> str:
    """Return the docstring with a line for each paragraph, as typer keeps breaks of lines."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


for _name, _function in COMMANDS.items():
    _trains = _name in ("train", "sweep")
    app.command(_name, help=_help(_function), epilog=EPILOG if _trains else None)(_function)


def _unwritten(error: OSError) -> OSError | None:
    """Return why standard output can't be written, if that raised `error`.

    A full disk under a file of ours is an error of its own; a text that is longer than the buffer
    of the stream leaves nothing there that could fail again.
    """
    is_full = error.errno == errno.ENOSPC and error.filename is None
    return terminal.write("", sys.stdout) or (error if is_full else None)


def main() -> None:
    """Run the command line; an error is one line on standard error and an exit code."""
    # torch warns of a CUDA toolkit without a device, which concerns nobody here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    terminal.open_streams()
    if not is_debugged("1"):
        warnings.showwarning = terminal.show_warning
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="funcnets", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # typer makes a SystemExit of a broken pipe.
        if BrokenPipeError not in (type(error), type(error.__context__)):
            raise
        terminal.silence(sys.stdout)
        sys.exit(terminal.EXIT_CODE_OF_UNREAD_OUTPUT)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if is_debugged("1"):
            raise
        code, message = exit_code(error), error_line(error)
        if isinstance(error, OSError) and (unwritten := _unwritten(error)):
            code, message = 1, f"standard output can't be written ({unwritten.strerror})"
        if not is_other_process():
            report(message)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)
