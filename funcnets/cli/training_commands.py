"""Commands that train and evaluate: `funcnets train`, `sweep` and `eval`.

Modules that a command needs are imported inside it: `--help` and a mistyped flag answer at once.
"""

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from funcnets.cli import options

if TYPE_CHECKING:
    from funcnets.cli.cadence import Cadence
    from funcnets.cli.messages import TrainingMessages
    from funcnets.cli.training import Training

TIMEOUT = 600.0  # seconds; the first step may compile for minutes


def _given(**values: Any) -> dict[str, Any]:
    """Return the values of the flags that were given."""
    return {field: value for field, value in values.items() if value is not None}


def train_command(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="NET",
            help="Name of a network: see `funcnets list`.",
            show_default="lenet_bn",
        ),
    ] = None,
    recipe: options.Recipe = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Course of the learning rate: constant, linear, cosine or one-cycle.",
        ),
    ] = None,
    epochs: options.Epochs = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Learning rate, the highest of the schedule.",
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    side: options.Side = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Seed of the initial values, the order of images, and dropout.",
            show_default="0",
        ),
    ] = None,
    data: options.Data = None,
    download: Annotated[
        bool,
        typer.Option(
            "--download", metavar="", help="Download the full data set if it isn't found."
        ),
    ] = False,
    limit_train: options.LimitTrain = None,
    device: options.Device = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            "--run",
            metavar="DIR",
            parser=options.directory,
            help="Run directory, with the checkpoints and measurements.",
            show_default="runs/NET-RECIPE-seedSEED",
        ),
    ] = None,
    resume: options.Resume = False,
    save_every: options.SaveEvery = None,
    backend: options.Backend = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="float32; bfloat16, with parameters, statistics and loss in float32; tf32, "
            "for GPUs; or auto, the fastest of them, measured.",
            show_default="float32",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Processes that train together, each on its share of a batch, as under torchrun.",
            show_default="1",
        ),
    ] = None,
    no_sync_bn: Annotated[
        bool,
        typer.Option(
            "--no-sync-bn",
            metavar="",
            help="Let batch norms of each process normalise by the statistics of its own share.",
        ),
    ] = False,
    compare_every: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Compare a hash of the train states of all processes every N steps.",
            show_default="before each checkpoint",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Give up a process that does not answer for that long."
        ),
    ] = TIMEOUT,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            metavar="",
            help="Run uncompiled, stop at the first value that isn't finite, and name its layer.",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a network, and keep checkpoints and measurements in a run directory.

    Without arguments this is lenet_bn, on the images that are found.  A run that is resumed ends
    with the same bits as one that was never stopped, on the same machine and versions.  The speed
    that is shown leaves out the first step of each shape, which compiles.
    """
    from funcnets.cli import distributed, preparation
    from funcnets.cli.messages import TrainingMessages
    from funcnets.cli.training import Training

    _check_at_least_one(compare_every=compare_every, timeout=timeout)
    distributed.start(processes)
    given = _given(
        network=network,
        recipe=recipe,
        schedule=schedule,
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        side=side,
        seed=seed,
        data=data,
        limit_train=limit_train,
        device=device,
        backend=backend,
        precision=precision,
        sync_batch_norm=False if no_sync_bn else None,
    )
    begin = preparation.resume if resume else preparation.begin
    how = {"check": check, "cadence": _cadence(save_every), "compare_every": compare_every}
    # By these flags processes come to the same collectives.
    flags = {"--resume": resume, "--run-dir": run, "--save-every": save_every, "--check": check}
    with distributed.joined(device, timeout) as joined:
        distributed.check_agreement(joined, flags | {"--compare-every": compare_every})
        setup = begin(given, run, download=download, processes=joined)
        _run(Training, TrainingMessages(setup), json, **how)


def _check_at_least_one(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {value:g}; expected 1 or more")


def _cadence(save_every: str | None) -> "Cadence | None":
    from funcnets.cli.cadence import Cadence

    return None if save_every is None else Cadence.parse(save_every)


def _run(kind: "type[Training]", messages: "TrainingMessages", json: bool, **options: Any) -> None:
    """Train, show how it goes, and exit as the signal says that stopped it, if one did."""
    from funcnets.cli import reporters

    lines = reporters.ProgressBar if sys.stdout.isatty() else reporters.PlainLines
    shown = reporters.JsonLines if json else lines
    if not messages.setup.processes.is_first:
        shown = reporters.Silence
    try:
        with shown(messages) as reporter:
            outcome = kind(messages.setup, reporter, **options).run()
    finally:
        messages.setup.directory.release()
    reporter.finish(outcome)
    if outcome.interrupted:
        raise typer.Exit(128 + outcome.interrupted)


def sweep_command(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="NET",
            help="Name of a network: see `funcnets list`.",
            show_default="lenet_bn",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Train seeds 0 to N - 1 with each learning rate.",
            show_default="8",
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            metavar="RATE,...",
            help="Learning rates, such as 0.05,0.1,0.5.",
        ),
    ] = None,
    recipe: options.Recipe = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    side: options.Side = None,
    data: options.Data = None,
    limit_train: options.LimitTrain = None,
    device: options.Device = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            "--run",
            metavar="DIR",
            parser=options.directory,
            help="Run directory.",
            show_default="runs/NET-RECIPE-sweep",
        ),
    ] = None,
    resume: options.Resume = False,
    save_every: options.SaveEvery = None,
    backend: options.Backend = None,
    json: options.Json = False,
) -> None:
    """Train a network for several seeds and learning rates together, as one ensemble.

    All members see the same batches, in the order of seed 0.  A member that diverges is marked and
    does not affect the others.  An ensemble predicts by the mean of its members' probabilities.
    """
    from funcnets.cli import distributed, preparation
    from funcnets.cli.sweep import Sweep
    from funcnets.cli.sweep_messages import SweepMessages
    from funcnets.runs import SweepConfig

    try:
        rates = None if lr is None else tuple(map(float, lr.split(",")))
    except ValueError:
        raise ValueError(f"--lr is {lr!r}; expected numbers, as 0.05,0.1,0.5") from None
    given = _given(
        network=network,
        seeds=seeds,
        rates=rates,
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        side=side,
        data=data,
        limit_train=limit_train,
        device=device,
        backend=backend,
    )
    cadence = _cadence(save_every)
    with distributed.joined(device, TIMEOUT) as joined:
        if joined.axis.size > 1:
            raise ValueError("a sweep trains its members in one process: start it without torchrun")
        if resume:
            setup = preparation.resume(given, run, kind=SweepConfig)
        else:
            setup = preparation.begin({"seeds": 8, **given}, run)
        _run(Sweep, SweepMessages(setup), json, cadence=cadence)


def eval_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", parser=options.directory, help="A run directory.")
    ],
    data: options.Data = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Measure loss and accuracy of a run's last checkpoint on all test images.

    Of a sweep it measures every member, the ensemble of each learning rate, and that of them all.
    """
    from funcnets.cli import distributed, evaluation, preparation, sweep
    from funcnets.cli.reporters import Reporter
    from funcnets.cli.sweep_messages import table
    from funcnets.runs import SweepConfig

    with distributed.joined(device, TIMEOUT) as joined:
        setup = preparation.open_run(run, _given(data=data, device=device), joined)
        for text in setup.warnings if joined.is_first else ():
            Reporter().warn(text)
        rows = []
        if isinstance(setup.config, SweepConfig):
            rows = sweep.evaluate(setup)
            measured = sweep.measured_ensemble(setup, rows)
        else:
            measured = evaluation.evaluate(setup)
    if not joined.is_first:
        return
    if json:
        print(json_format.dumps(measured))
        return
    for line in table(rows):
        print(line)
    loss = measured["test_loss"]
    print(
        f"{measured['network']}, step {measured['step']}: "
        f"test loss {'not finite' if loss is None else format(loss, '.4f')}, "
        f"accuracy {measured['test_accuracy']:.4f} over {measured['test_images']:,} images"
    )
