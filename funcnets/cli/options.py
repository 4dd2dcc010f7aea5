"""Options of commands, each written once, and the commands' tables of them.

Nothing here imports torch: `--help` and a mistyped flag answer at once.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

TIMEOUT = 600.0  # seconds; the first step may compile for minutes

DATA, RECIPE, RUN, MACHINE = "Data", "Recipe", "Run", "Machine"

# Values that are shown and completed; a test compares them with what configurations take.
CHOICES = {
    "recipe": ("tuned", "reference"),
    "schedule": ("constant", "linear", "cosine", "one-cycle"),
    "backend": ("native", "graph", "inductor"),
    "precision": ("float32", "bfloat16", "tf32", "auto"),
}
DATASETS = (
    *("fashion-mnist", "mnist", "kmnist"),
    *("emnist-balanced", "emnist-byclass", "emnist-bymerge"),
    *("emnist-digits", "emnist-letters", "emnist-mnist"),
    *("cifar10", "cifar100"),
)


def directory(given: str) -> Path:
    """Return the path of a directory's name.  Raises BadParameter if it is empty."""
    if not given:
        raise typer.BadParameter("given was ''; expected the name of a directory")
    return Path(given)


def _choice(name: str, help: str, panel: str, **options: Any) -> Any:
    """Return an option that takes one of `CHOICES`: they are shown, and completed by a shell."""
    known = CHOICES[name]

    def complete(incomplete: str) -> list[str]:
        return [value for value in known if value.startswith(incomplete)]

    listed = f"{', '.join(known[:-1])} or {known[-1]}"
    return typer.Option(
        metavar="NAME",
        help=f"{listed}{help}",
        rich_help_panel=panel,
        autocompletion=complete,
        **options,
    )


def _complete_network(incomplete: str) -> list[str]:
    from funcnets import models

    return [name for name in models.INDEX if name.startswith(incomplete)]


def _switch(flag: str, help: str, panel: str | None = None) -> Any:
    return typer.Option(flag, metavar="", help=help, rich_help_panel=panel)


def whole_numbers(option: str, given: str | None) -> tuple[int, ...]:
    """Return the numbers of a list like `1,2`; none for None.

    Raises BadParameter unless each is a whole number, 1 or more.
    """
    numbers = [] if given is None else [text.strip() for text in given.split(",")]
    if not all(text.isdecimal() and int(text) for text in numbers):
        raise typer.BadParameter(
            f"{option} is {given!r}; expected whole numbers from 1 on, such as 1,2"
        )
    return tuple(map(int, numbers))


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
        help="Name of a network: see `funcnets list`.",
        show_default="lenet_bn",
        autocompletion=_complete_network,
    ),
]
Json = Annotated[bool, _switch("--json", "Print JSON, an object on each line.")]

# Data


def _complete_dataset(incomplete: str) -> list[str]:
    return [name for name in (*DATASETS, "folder:") if name.startswith(incomplete)]


DataSet = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="fashion-mnist, mnist, kmnist, emnist-letters (or another part), cifar10 or cifar100, "
        "with the known hashes; or folder:DIR, with PNG and JPEG images in a directory for each "
        "class.",
        show_default="any four IDX files in --data, else fashion-mnist",
        rich_help_panel=DATA,
        autocompletion=_complete_dataset,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Directory of the files, packed or not, or bundled for the images in the package.",
        show_default="FUNCNETS_DATA, the usual places, bundled",
        rich_help_panel=DATA,
    ),
]
LimitTrain = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use the first N training images only.", rich_help_panel=DATA),
]
Side = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Pixels a side, to which images are resized.",
        show_default="the recipe's; the images' own where that is 28",
        rich_help_panel=DATA,
    ),
]
Validation = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="Hold this part of the training images out, such as 0.1: the best epoch is chosen by "
        "it, and the test images are looked at once, at the end.",
        show_default="none: test accuracy is watched",
        rich_help_panel=DATA,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Stop after N epochs without a better one on the validation part.",
        show_default="after the last epoch",
        rich_help_panel=RECIPE,
    ),
]
Normalize = Annotated[
    bool | None,
    _switch(
        "--normalize",
        "Subtract the mean of the training images in each channel, and divide by the deviation.",
        DATA,
    ),
]
Download = Annotated[
    bool, _switch("--download", "Download the files of the data set that aren't found.", DATA)
]

# Recipe

Recipe = Annotated[
    str | None,
    _choice(
        "recipe",
        ", the published one: source of the values that you leave out. The learning rate of "
        "tuned falls linearly to zero.",
        RECIPE,
        show_default="tuned",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Passes over the training images.", rich_help_panel=RECIPE),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="Images a step.", rich_help_panel=RECIPE)
]
Schedule = Annotated[str | None, _choice("schedule", ": course of the learning rate.", RECIPE)]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        "--learning-rate",
        metavar="RATE",
        help="Learning rate, the highest of the schedule.",
        rich_help_panel=RECIPE,
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        "--lr",
        "--learning-rate",
        metavar="RATE,...",
        help="Learning rates, such as 0.05,0.1,0.5.",
        rich_help_panel=RECIPE,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Seed of the initial values, the order of images, and dropout.",
        show_default="0",
        rich_help_panel=RECIPE,
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Train seeds 0 to N - 1 with each learning rate.",
        show_default="8",
        rich_help_panel=RECIPE,
    ),
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


TrainingDirectory = Annotated[Path | None, _run_directory("runs/NET-RECIPE-seedSEED")]
SweepDirectory = Annotated[Path | None, _run_directory("runs/NET-RECIPE-sweep")]
Resume = Annotated[bool, _switch("--resume", "Go on with the run from its last checkpoint.", RUN)]
SaveEvery = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Save within epochs too: every N steps, or after a time such as 90s, 10m or 2h.",
        show_default="after each epoch",
        rich_help_panel=RUN,
    ),
]
Check = Annotated[
    bool,
    _switch(
        "--check",
        "Run uncompiled, stop at the first value that isn't finite, and name its layer.",
        RUN,
    ),
]

# Machine

Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cpu, cuda or cuda:N.",
        show_default="cuda if there is a GPU",
        rich_help_panel=MACHINE,
    ),
]
Backend = Annotated[
    str | None,
    _choice(
        "backend",
        ": compiler of the training step. native fuses element-wise operations into C++ loops, "
        "graph does without, inductor is PyTorch's compiler.",
        MACHINE,
        show_default="native on a CPU, else inductor",
    ),
]
Precision = Annotated[
    str | None,
    _choice(
        "precision",
        ", the fastest of them, measured. bfloat16 has parameters, statistics and loss in float32; "
        "tf32 is for GPUs.",
        MACHINE,
        show_default="float32",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Processes that train together, each on its share of a batch, as under torchrun.",
        show_default="1",
        rich_help_panel=MACHINE,
    ),
]
SyncBatchNorm = Annotated[
    bool | None,
    _switch(
        "--no-sync-bn",
        "Let batch norms of each process normalise by the statistics of its own share.",
        MACHINE,
    ),
]
CompareEvery = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Compare a hash of the train states of all processes every N steps.",
        show_default="before each checkpoint",
        rich_help_panel=MACHINE,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Give up a process that does not answer for that long.",
        rich_help_panel=MACHINE,
    ),
]

# Fields of a configuration that trainings and sweeps are given; in the order of `--help`.
_SHARED = {
    "dataset": DataSet,
    "data": Data,
    "limit_train": LimitTrain,
    "side": Side,
    "normalize": Normalize,
    "recipe": Recipe,
    "epochs": Epochs,
    "batch_size": BatchSize,
    "schedule": Schedule,
    "device": Device,
    "backend": Backend,
}
_OF_RUNS = {"resume": Resume, "save_every": SaveEvery}
TRAIN_FIELDS: dict[str, Any] = {
    "network": UsualNetwork,
    **_SHARED,
    "validation": Validation,
    "learning_rate": LearningRate,
    "patience": Patience,
    "seed": Seed,
    "precision": Precision,
    "sync_batch_norm": SyncBatchNorm,
}
SWEEP_FIELDS: dict[str, Any] = {
    "network": UsualNetwork,
    **_SHARED,
    "rates": Rates,
    "seeds": Seeds,
}
TRAIN: dict[str, Any] = {
    **TRAIN_FIELDS,
    "download": Download,
    "run": TrainingDirectory,
    **_OF_RUNS,
    "check": Check,
    "processes": Processes,
    "compare_every": CompareEvery,
    "timeout": Timeout,
    "json": Json,
}
SWEEP: dict[str, Any] = {**SWEEP_FIELDS, "run": SweepDirectory, **_OF_RUNS, "json": Json}
EVAL_FIELDS: dict[str, Any] = {"dataset": DataSet, "data": Data, "device": Device}
DEFAULTS = {"timeout": TIMEOUT}


def take(table: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the decorator that gives a command the options of a table, as keyword arguments.

    An option that isn't given is None, a switch False.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def parameter(name: str, option: Any) -> inspect.Parameter:
            default = DEFAULTS.get(name, False if get_args(option)[0] is bool else None)
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
