"""The command line: `funcnets train`, `sweep`, `eval`, `summary`, `list` and `bench`.

What a command needs is imported inside it, so that `--help` and a mistyped flag answer at once.
"""

import itertools
import json as json_format
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from funcnets.cli import terminal

if TYPE_CHECKING:
    from funcnets.cli.messages import Words
    from funcnets.cli.preparation import Session
    from funcnets.cli.training import Work

EPILOG = """Exit codes: 0 done; 1 the training failed; 2 bad arguments or files; 130,
143 and 141 stopped by Ctrl-C, by SIGTERM, or as nobody reads what is
printed, all after saving (a second signal stops at once).

FUNCNETS_DEBUG=1 shows the traceback of an error."""

app = typer.Typer(
    help="The classic convolutional networks as pure functions, trained on Fashion-MNIST.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode="rich",
)

# click's ClickException: where it lives depends on the version of typer.
CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def _directory(given: str) -> Path:
    if not given:
        raise typer.BadParameter("given was ''; expected the name of a directory")
    return Path(given)


Recipe = Annotated[
    str | None,
    typer.Option(
        help="Where the numbers below come from: tuned, whose learning rate falls linearly to "
        "zero, or reference, the published one.  (default: tuned)"
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples a step.")]
Side = Annotated[int | None, typer.Option(help="Pixels a side, resized to.")]
LimitTrain = Annotated[
    int | None, typer.Option(metavar="N", help="Train on the first N images alone.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Directory of the IDX files, or 'bundled' for the part that comes with funcnets. "
        "(default: FUNCNETS_DATA, the usual places, bundled)",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Such as cpu or cuda:0.  (default: cuda if there is one)")
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="native makes C++ of what lies between convolutions; graph runs it operation by "
        "operation; inductor compiles all.  (default: native on a CPU, elsewhere inductor)"
    ),
]


@app.command("train", epilog=EPILOG)
def train_command(
    network: Annotated[
        str | None,
        typer.Argument(metavar="NET", help="See `funcnets list`.  (default: lenet_bn)"),
    ] = None,
    recipe: Recipe = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="Of the learning rate: constant, linear, cosine or one-cycle."),
    ] = None,
    epochs: Epochs = None,
    lr: Annotated[float | None, typer.Option(help="The (highest) learning rate.")] = None,
    batch_size: BatchSize = None,
    side: Side = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initial values, order and dropout.  (default: 0)")
    ] = None,
    data: Data = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the full set if it isn't found.")
    ] = False,
    limit_train: LimitTrain = None,
    device: Device = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=_directory,
            help="Run directory.  (default: runs/NET-RECIPE-seedSEED)",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run from its last checkpoint.")
    ] = False,
    backend: Backend = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, tf32 (on GPUs: rounded factors), bfloat16 (with float32 parameters, "
            "statistics and loss) or auto, the fastest of them, measured.  (default: float32)"
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Stop at the first layer with a value that isn't finite, and name it; uncompiled.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train a network: by default lenet_bn, on the images that are there, in a new directory.

    Examples/s leaves out the first step of each shape, which compiles.  --resume goes on to the
    same bits as a run that was never stopped, on the same machine and versions.
    """
    from funcnets.cli import preparation, training
    from funcnets.cli.messages import Words

    given = {
        "network": network,
        "recipe": recipe,
        "schedule": schedule,
        "epochs": epochs,
        "learning_rate": lr,
        "batch_size": batch_size,
        "side": side,
        "seed": seed,
        "data": data,
        "limit_train": limit_train,
        "device": device,
        "backend": backend,
        "precision": precision,
    }
    given = {field: value for field, value in given.items() if value is not None}
    start = preparation.resume if resume else preparation.begin
    _train(start(given, run, download=download), training.TRAINING, Words(), json, check=check)


def _train(
    session: "Session", work: "Work", words: "Words", json: bool, *, check: bool = False
) -> None:
    from funcnets.cli import reporters, training

    lines = reporters.ProgressBar if sys.stdout.isatty() else reporters.PlainLines
    with (reporters.JsonLines if json else lines)(session, words) as reporter:
        outcome = training.go(session, reporter, work, check=check)
    reporter.finish(outcome)
    if outcome.interrupted:
        raise typer.Exit(128 + outcome.interrupted)


@app.command("sweep", epilog=EPILOG)
def sweep_command(
    network: Annotated[str, typer.Argument(metavar="NET", help="See `funcnets list`.")],
    seeds: Annotated[int, typer.Option(metavar="N", help="Seeds 0 to N - 1, with each rate.")] = 8,
    lr: Annotated[
        str | None,
        typer.Option(metavar="RATE,…", help="Learning rates, such as 0.05,0.1,0.5."),
    ] = None,
    recipe: Recipe = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    side: Side = None,
    data: Data = None,
    limit_train: LimitTrain = None,
    device: Device = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=_directory,
            help="Run directory.  (default: runs/NET-RECIPE-sweep)",
        ),
    ] = None,
    backend: Backend = None,
    json: Json = False,
) -> None:
    """Train a network for every seed and learning rate together, as one ensemble in one step.

    All members see the same batches, in the order of seed 0.  One that diverges is marked, and
    touches no other.  An ensemble predicts by the mean of its members' probabilities.
    """
    from funcnets.cli import sweep
    from funcnets.cli.messages import SweepWords

    given = {
        "network": network,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "side": side,
        "data": data,
        "limit_train": limit_train,
        "device": device,
        "backend": backend,
    }
    given = {field: value for field, value in given.items() if value is not None}
    try:
        rates = [float(rate) for rate in lr.split(",")] if lr is not None else []
    except ValueError:
        raise ValueError(f"--lr is {lr!r}; expected numbers, as 0.05,0.1,0.5") from None
    _train(sweep.begin(given, seeds, rates, run), sweep.SWEEP, SweepWords(), json)


@app.command("eval", epilog=EPILOG)
def eval_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", parser=_directory, help="A run directory.")],
    data: Data = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure loss and accuracy of a run's last checkpoint over all test images."""
    from funcnets.cli import reporters, training

    given = {"data": data, "device": device}
    given = {field: value for field, value in given.items() if value is not None}
    measured = training.evaluate(run, given, reporters.Warnings())
    if json:
        print(json_format.dumps(measured))
        return
    loss = measured["test_loss"]
    print(
        f"{measured['network']}, step {measured['step']}: "
        f"test loss {'not finite' if loss is None else format(loss, '.4f')}, "
        f"accuracy {measured['test_accuracy']:.4f} over {measured['test_images']:,} images"
    )


@app.command("summary", epilog=EPILOG)
def summary_command(
    network: Annotated[str, typer.Argument(metavar="NET")],
    input: Annotated[str | None, typer.Option(metavar="N,C,H,W", help="Input shape.")] = None,
    depth: Annotated[int | None, typer.Option(help="Levels of parts to show.")] = None,
    json: Json = False,
) -> None:
    """Show each part's output shape, parameters and multiply-adds."""
    from funcnets import models, summary
    from funcnets.cli import tables

    net, recipe = models.get(network)
    try:
        shape = tuple(map(int, input.split(","))) if input else (1, 1, recipe.side, recipe.side)
    except ValueError:
        raise ValueError(f"--input is {input!r}; expected four numbers, as 1,1,224,224") from None
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"--input is {input!r}; expected four positive numbers, as 1,1,224,224")
    if depth is not None and depth < 0:
        raise ValueError(f"--depth is {depth}; expected 0 or more")
    rows = summary.summarize(net, shape, depth)
    if json:
        for row in rows:
            print(json_format.dumps(row._asdict()))
    else:
        tables.show(summary.render(rows))


@app.command("list", epilog=EPILOG)
def list_command(json: Json = False) -> None:
    """List the networks, their parameters and the recipes that they are trained by."""
    from dataclasses import asdict

    from rich.table import Table

    from funcnets import models, summary
    from funcnets.cli import tables

    table = Table()
    for column in ("network", "parameters", "recipe", "rate", "schedule", "batch", "side"):
        is_name = column in ("network", "recipe", "schedule")
        table.add_column(column, justify="left" if is_name else "right")
    for name, (build, recipes) in models.INDEX.items():
        for recipe_name, recipe in recipes.items():
            total = summary.summarize(build(), (1, 1, recipe.side, recipe.side), depth=0)[-1]
            row = {"network": name, "parameters": total.parameters, "recipe": recipe_name}
            if json:
                print(json_format.dumps(row | asdict(recipe)))
            numbers = (recipe.learning_rate, recipe.schedule, recipe.batch_size, recipe.side)
            table.add_row(name, f"{total.parameters:,}", recipe_name, *map(str, numbers))
    if not json:
        tables.show(table)


@app.command("bench", epilog=EPILOG)
def bench_command(
    networks: Annotated[
        list[str] | None,
        typer.Argument(metavar="NET|all", help="See `funcnets list`.  (default: lenet_bn)"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    side: Annotated[int | None, typer.Option(help="Pixels, instead of the recipe's.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns that each step has.")] = 10,
    seconds: Annotated[
        float | None, typer.Option(help="Begin no more rounds of a network after that long.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,...",
            help="Of jit, graph and inductor (funcnets), eager, eager-last, compiled, "
            "compiled-last (the module, plain and channels_last), and flax, which needs the "
            "extra bench-jax.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="PRECISION,...", help="Of float32, bfloat16 and, on GPUs, tf32."),
    ] = None,
    first_step: Annotated[
        bool, typer.Option("--first-step", help="Time to the first step, cold and warm, instead.")
    ] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory instead.")] = False,
    lowerings: Annotated[
        bool,
        typer.Option(
            "--lowerings", help="Lowerings, fusions and loops against what they replace instead."
        ),
    ] = False,
    epoch: Annotated[
        bool, typer.Option("--epoch", help="A whole epoch against the usual loop instead.")
    ] = False,
    data: Data = None,
    limit_train: Annotated[
        int | None, typer.Option(metavar="N", help="Images of an epoch, for --epoch.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Of the usual DataLoader, for --epoch.")] = 2,
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare training steps with those of modules, in turns, in one process.

    A ratio is how many times as fast a step is as the fastest module's at its precision; GFLOP/s
    are counted as direct convolutions, and stand beside those of a matrix product.
    """
    import torch

    from funcnets import bench
    from funcnets.cli import tables
    from funcnets.precision import available
    from funcnets.runs.config import check_device

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    plan = bench.Plan(
        bench.cases(networks or ["lenet_bn"], batch_size, side, device),
        bench.columns(only),
        bench.names("--precision", precision, available(device)),
        rounds,
        seconds,
        data,
        limit_train,
        workers,
    )
    chosen = {"first_step": first_step, "memory": memory, "lowerings": lowerings, "epoch": epoch}
    kinds = [kind for kind, wanted in chosen.items() if wanted] or ["steps"]
    found = (rows for kind in kinds for rows in bench.BENCHMARKS[kind](plan, _note))
    head: Sequence[NamedTuple] = [bench.machine(device)]
    for rows in itertools.chain([head], found):
        if json:
            for row in rows:
                print(json_format.dumps({"kind": type(row).__name__, **row._asdict()}), flush=True)
        else:
            tables.show(bench.render(rows))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _message(error: Exception) -> str:
    message = str(getattr(error, "format_message", error.__str__)())
    # Where typer leaves out what was given, the error that it had from pydantic has it.
    details = getattr(error.__cause__, "errors", None)
    if not isinstance(error, CommandLineError) or details is None:
        return message
    return f"{message}; given was {details()[0]['input']!r}"


def main() -> None:
    """Run the command line; an error is one line on standard error and an exit code."""
    # torch warns where a CUDA toolkit stands without a device, which concerns nobody here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    terminal.open_closed()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="funcnets", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # typer makes a broken pipe a SystemExit.
        if BrokenPipeError not in (type(error), type(error.__context__)):
            raise
        terminal.silence(sys.stdout)
        sys.exit(terminal.NOBODY_READS)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("FUNCNETS_DEBUG"):
            raise
        print(f"funcnets: {' '.join(_message(error).split()) or repr(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, (CommandLineError, ValueError, OSError)) else 1)
    sys.exit(code if isinstance(code, int) else 0)
