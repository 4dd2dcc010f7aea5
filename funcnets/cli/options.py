"""Options of commands, each written once, and the commands' tables of them.

Nothing here imports torch: `--help` and a mistyped flag answer at once.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from funcnets.cli.option_kinds import (
    DATA,
    DATASETS,
    MACHINE,
    NETWORKS,
    RUN,
    choice,
    directory,
    switch,
    value,
)
from funcnets.cli.recipe_options import (
    RECIPE_FIELDS,
    BatchSize,
    Epochs,
    InitFrom,
    LearningRate,
    Patience,
    Rates,
    Recalibrate,
    Recipe,
    Schedule,
    Seed,
    Seeds,
)

TIMEOUT = 600.0  # seconds; the first step may compile for minutes


def _complete_network(incomplete: str) -> list[str]:
    return [name for name in NETWORKS if name.startswith(incomplete)]


Network = Annotated[
    str,
    typer.Argument(
        metavar="NET",
        help="Name of a network: see `funcnets list`.",
        autocompletion=_complete_network,
    ),
]
UsualNetwork = Annotated[
    str | None,
    typer.Argument(
        metavar="NET",
        help="Name of a network (see `funcnets list`), or package.module:name of your own: a "
        "Layer, an nn.Module, or a function that returns one.",
        show_default="lenet_bn",
        autocompletion=_complete_network,
    ),
]
Json = Annotated[bool, switch("--json", "Print JSON, an object on each line.")]

# Data


def _complete_dataset(incomplete: str) -> list[str]:
    return [name for name in (*DATASETS, "folder:") if name.startswith(incomplete)]


DataSet = Annotated[
    str | None,
    value(
        "NAME",
        "fashion-mnist, mnist, kmnist, emnist-letters (or another part), cifar10 or cifar100, "
        "with the known hashes; or folder:DIR, with PNG and JPEG images in a directory for each "
        "class.",
        DATA,
        "--dataset",
        show_default="any four IDX files in --data, else fashion-mnist",
        autocompletion=_complete_dataset,
    ),
]
Data = Annotated[
    str | None,
    value(
        "DIR",
        "Directory of the files, compressed or not, or bundled for the images in the package.",
        DATA,
        show_default="FUNCNETS_DATA, the usual places, bundled",
    ),
]
LimitTrain = Annotated[
    int | None,
    value(
        "N",
        "Use the first N training images only.",
        DATA,
    ),
]
Side = Annotated[
    int | None,
    value(
        "N",
        "Pixels a side, to which images are resized.",
        DATA,
        show_default="the recipe's; the images' own where that is 28",
    ),
]
Validation = Annotated[
    float | None,
    value(
        "FRACTION",
        "Hold this part of the training images out, such as 0.1: the best epoch is chosen by "
        "it, and the test images are looked at once, at the end.",
        DATA,
        show_default="none: test accuracy is watched",
    ),
]
Normalize = Annotated[
    bool | None,
    switch(
        "--normalize",
        "Subtract the mean of the training images in each channel, and divide by the deviation.",
        DATA,
    ),
]
Download = Annotated[
    bool, switch("--download", "Download the files of the data set that aren't found.", DATA)
]

# Run


def _run_directory(usual: str) -> Any:
    return typer.Option(
        "--run-dir",
        "--run",
        metavar="DIR",
        parser=directory,
        help="Run directory, with the checkpoints and measurements.",
        show_default=usual,
        rich_help_panel=RUN,
    )


ConfigFile = Annotated[
    Path | None,
    value(
        "FILE",
        "Values that no flag gives: a TOML file with fields of config.json as keys, or the "
        "config.json of a run.",
        RUN,
    ),
]
TrainingDirectory = Annotated[Path | None, _run_directory("runs/NET-RECIPE-seedSEED")]
SweepDirectory = Annotated[Path | None, _run_directory("runs/NET-RECIPE-sweep")]
Resume = Annotated[bool, switch("--resume", "Go on with the run from its last checkpoint.", RUN)]
SaveEvery = Annotated[
    str | None,
    value(
        "N",
        "Save within epochs too: every N steps, or after a time such as 90s, 10m or 2h.",
        RUN,
        show_default="after each epoch",
    ),
]
LogEvery = Annotated[
    int | None,
    value(
        "N",
        "Keep loss, learning rate, gradient norm, speed and times of every Nth step, in "
        "RUN/steps.jsonl and steps.csv.",
        RUN,
        show_default="of epochs alone",
    ),
]
TensorBoard = Annotated[
    bool,
    switch("--tensorboard", "Write all measurements for TensorBoard, in RUN/tensorboard.", RUN),
]
Check = Annotated[
    bool,
    switch(
        "--check",
        "Run uncompiled, stop at the first value that isn't finite, and name its layer.",
        RUN,
    ),
]

Confusion = Annotated[
    bool,
    switch(
        "--confusion",
        "Show accuracy and confusions by class, the calibration error and the worst mistakes.",
    ),
]

# Machine

Device = Annotated[
    str | None,
    value(
        "NAME",
        "cpu, cuda or cuda:N.",
        MACHINE,
        show_default="cuda if there is a GPU",
    ),
]
Backend = Annotated[
    str | None,
    choice(
        "backend",
        ": compiler of the training step. native fuses element-wise operations into C++ loops, "
        "graph runs each alone, inductor is PyTorch's compiler, which pays on a GPU from 15 (VGG) "
        "to 400 (LeNet) epochs on.",
        MACHINE,
        show_default="native on a CPU, graph on a GPU",
    ),
]
Precision = Annotated[
    str | None,
    choice(
        "precision",
        ", the fastest of them, measured. bfloat16 has parameters, statistics and loss in float32; "
        "tf32 is for GPUs.",
        MACHINE,
        show_default="bfloat16 on a GPU from capability 8.0 on, else float32",
    ),
]
Deterministic = Annotated[
    bool | None,
    switch(
        "--deterministic",
        "Compute the same bits each time on a GPU too, more slowly; not yet tried on one.",
        MACHINE,
    ),
]
StepsPerCall = Annotated[
    int | None,
    value(
        "N",
        "Compile N steps as one call, which saves time in Python: for small networks on a GPU.",
        MACHINE,
        show_default="1",
    ),
]
Processes = Annotated[
    int | None,
    value(
        "N",
        "Processes that train together, each on its share of a batch, as under torchrun.",
        MACHINE,
        show_default="1",
    ),
]
SyncBatchNorm = Annotated[
    bool | None,
    switch(
        "--no-sync-bn",
        "Let batch norms of each process normalise by the statistics of its own share.",
        MACHINE,
    ),
]
CompareEvery = Annotated[
    int | None,
    value(
        "N",
        "Compare a hash of the train states of all processes every N steps.",
        MACHINE,
        show_default="before each checkpoint",
    ),
]
Timeout = Annotated[
    float,
    value(
        "SECONDS",
        "Give up a process that does not answer for that long.",
        MACHINE,
    ),
]

# Fields of a configuration that trainings and sweeps are given; in the order of `--help`.
_DATA_FIELDS = {
    "dataset": DataSet,
    "data": Data,
    "limit_train": LimitTrain,
    "side": Side,
    "normalize": Normalize,
}
_COURSE = {"recipe": Recipe, "epochs": Epochs, "batch_size": BatchSize}
_OF_RUNS = {
    "resume": Resume,
    "save_every": SaveEvery,
    "tensorboard": TensorBoard,
    "log_every": LogEvery,
}
TRAIN_FIELDS: dict[str, Any] = {
    "network": UsualNetwork,
    **_DATA_FIELDS,
    "validation": Validation,
    **_COURSE,
    "learning_rate": LearningRate,
    "schedule": Schedule,
    **RECIPE_FIELDS,
    "recalibrate": Recalibrate,
    "init_from": InitFrom,
    "patience": Patience,
    "seed": Seed,
    "device": Device,
    "backend": Backend,
    "precision": Precision,
    "deterministic": Deterministic,
    "steps_per_call": StepsPerCall,
    "sync_batch_norm": SyncBatchNorm,
}
_OF_ONE_NETWORK = ("ema", "accumulate")
SWEEP_FIELDS: dict[str, Any] = {
    "network": UsualNetwork,
    **_DATA_FIELDS,
    **_COURSE,
    "rates": Rates,
    "schedule": Schedule,
    **{name: each for name, each in RECIPE_FIELDS.items() if name not in _OF_ONE_NETWORK},
    "seeds": Seeds,
    "device": Device,
    "backend": Backend,
}
TRAIN: dict[str, Any] = {
    **TRAIN_FIELDS,
    "download": Download,
    "config": ConfigFile,
    "run": TrainingDirectory,
    **_OF_RUNS,
    "check": Check,
    "processes": Processes,
    "compare_every": CompareEvery,
    "timeout": Timeout,
    "json": Json,
}
SWEEP: dict[str, Any] = {
    **SWEEP_FIELDS,
    "config": ConfigFile,
    "run": SweepDirectory,
    **_OF_RUNS,
    "json": Json,
}
EVAL_FIELDS: dict[str, Any] = {"dataset": DataSet, "data": Data, "device": Device}
DEFAULTS = {"timeout": TIMEOUT}


def take(
    table: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the decorator that gives a command the options of a table, as keyword arguments.

    An option that isn't given has its value of `defaults`, or else is None, a switch False.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def parameter(name: str, option: Any) -> inspect.Parameter:
            usual = {bool: False, str: inspect.Parameter.empty}.get(get_args(option)[0])
            default = defaults.get(name, usual)
            kind = inspect.Parameter.KEYWORD_ONLY
            return inspect.Parameter(name, kind, default=default, annotation=option)

        parameters = [parameter(name, option) for name, option in table.items()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def flag(name: str, option: Any) -> str:
    """Return an option or argument as it is called on the command line.

    >>> from funcnets.cli import options
    >>> options.flag("learning_rate", options.LearningRate), options.flag("side", options.Side)
    ('--lr', '--side')
    """
    info = get_args(option)[1]
    if isinstance(info, typer.models.ArgumentInfo):
        return str(info.metavar)
    declared = [info.default, *(info.param_decls or ())]
    named = [each for each in declared if isinstance(each, str)]
    return named[0] if named else f"--{name.replace('_', '-')}"


FLAGS = {name: flag(name, option) for name, option in {**SWEEP_FIELDS, **TRAIN_FIELDS}.items()}


def fields(table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration among the options `given` that are in a table.

    An option that isn't given is None; one that begins with `--no-` makes its field False.
    """
    return {
        field: value is not True if flag(field, table[field]).startswith("--no-") else value
        for field, value in given.items()
        if field in table and value is not None
    }
