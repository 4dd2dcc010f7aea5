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


@options.take(options.TRAIN)
def train_command(
    *,
    config: Path | None,
    run: Path | None,
    download: bool,
    resume: bool,
    save_every: str | None,
    tensorboard: bool,
    log_every: int | None,
    check: bool,
    processes: int | None,
    compare_every: int | None,
    timeout: float,
    json: bool,
    **given: Any,
) -> None:
    """Train a network, and keep checkpoints and measurements in a run directory.

    Without arguments this is lenet_bn, on the images that are found.  A run that is resumed ends
    with the same bits as one that was never stopped, on the same machine and versions.  The speed
    that is shown leaves out the first step of each shape, which compiles.  One warning says if the
    training loss jumps up, or stays at chance level, and what often helps.
    """
    from funcnets.cli import config_file, distributed, preparation
    from funcnets.cli.configuration import check_range
    from funcnets.cli.messages import TrainingMessages
    from funcnets.cli.tensorboard import check_installed
    from funcnets.cli.training import Training
    from funcnets.runs import Config

    check_range("--compare-every", compare_every, 1)
    check_range("--log-every", log_every, 1)
    check_range("--timeout", timeout, 1)
    distributed.start(processes)
    fields = options.fields(options.TRAIN_FIELDS, given)
    fields = config_file.merged(fields, config, Config)
    begin = preparation.resume if resume else preparation.begin
    how = {
        "check": check,
        "cadence": _cadence(save_every),
        "compare_every": compare_every,
        "log_every": log_every,
        "tensorboard": tensorboard,
    }
    # By these flags processes come to the same collectives.
    flags = {"--resume": resume, "--run-dir": run, "--save-every": save_every, "--check": check}
    with distributed.joined(fields.get("device"), timeout) as joined:
        more = {"--compare-every": compare_every, "--log-every": log_every}
        distributed.check_agreement(joined, flags | more)
        joined.together(check_installed if tensorboard else lambda: None)
        setup = begin(fields, run, download=download, processes=joined)
        _run(Training, TrainingMessages(setup), json, **how)


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


@options.take(options.SWEEP)
def sweep_command(
    *,
    config: Path | None,
    run: Path | None,
    resume: bool,
    save_every: str | None,
    tensorboard: bool,
    log_every: int | None,
    json: bool,
    **given: Any,
) -> None:
    """Train a network for several seeds and learning rates together, as one ensemble.

    All members see the same batches, in the order of seed 0.  A member that diverges is marked and
    does not affect the others.  An ensemble predicts by the mean of its members' probabilities.
    """
    from funcnets.cli import config_file, distributed, preparation
    from funcnets.cli.configuration import check_range
    from funcnets.cli.sweep import Sweep
    from funcnets.cli.sweep_messages import SweepMessages
    from funcnets.cli.tensorboard import check_installed
    from funcnets.runs import SweepConfig

    check_range("--log-every", log_every, 1)
    fields = options.fields(options.SWEEP_FIELDS, given)
    if "rates" in fields:
        fields["rates"] = _rates(fields["rates"])
    fields = config_file.merged(fields, config, SweepConfig)
    how = {
        "cadence": _cadence(save_every),
        "log_every": log_every,
        "tensorboard": tensorboard,
    }
    if tensorboard:
        check_installed()
    with distributed.joined(fields.get("device"), options.TIMEOUT) as joined:
        if joined.axis.size > 1:
            raise ValueError("a sweep trains its members in one process: start it without torchrun")
        if resume:
            setup = preparation.resume(fields, run, kind=SweepConfig)
        else:
            setup = preparation.begin({"seeds": 8, **fields}, run)
        _run(Sweep, SweepMessages(setup), json, **how)


def _rates(text: str) -> tuple[float, ...]:
    """Return the learning rates in a text such as 0.05,0.1,0.5."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise ValueError(f"--lr is {text!r}; expected numbers, as 0.05,0.1,0.5") from None


def eval_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", parser=options.directory, help="A run directory.")
    ],
    confusion: options.Confusion = False,
    dataset: options.DataSet = None,
    data: options.Data = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Measure loss and accuracy of a run's last checkpoint on all test images.

    Of a sweep it measures every member, the ensemble of each learning rate, and that of them all.
    --data and --dataset name other test images than the run's; a line says so.
    """
    from funcnets.cli import confusion as confusions
    from funcnets.cli import distributed, evaluation, preparation, sweep, terminal
    from funcnets.cli.reporters import Reporter
    from funcnets.cli.sweep_messages import table
    from funcnets.runs import SweepConfig

    with distributed.joined(device, options.TIMEOUT) as joined:
        setup = preparation.open_run(
            run,
            options.fields(
                options.EVAL_FIELDS, {"dataset": dataset, "data": data, "device": device}
            ),
            joined,
        )
        for text in setup.warnings if joined.is_first else ():
            Reporter().warn(text)
        rows = []
        report = None
        if confusion and joined.axis.size > 1:
            raise ValueError("--confusion is of one process: start it without torchrun")
        if confusion:
            report = confusions.report(setup)
        if isinstance(setup.config, SweepConfig):
            rows = sweep.evaluate(setup)
            measured = sweep.measured_ensemble(setup, rows)
        else:
            measured = evaluation.evaluate(setup)
    if not joined.is_first:
        return
    if json:
        print(json_format.dumps(measured | (report._asdict() if report else {})))
        return
    for line in table(rows):
        print(line)
    loss = measured["test_loss"]
    print(
        f"{measured['network']}, step {measured['step']}: "
        f"test loss {'not finite' if loss is None else format(loss, '.4f')}, "
        f"accuracy {measured['test_accuracy']:.4f} over {measured['test_images']:,} images"
    )
    if report:
        terminal.show(confusions.table(report))
        for line in confusions.lines(report):
            print(line)
