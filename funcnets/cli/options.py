"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


def directory(given: str) -> Path:
    """Return the path of a directory's name.  Raises BadParameter if it is empty."""
    if not given:
        raise typer.BadParameter("given was ''; expected the name of a directory")
    return Path(given)


Network = Annotated[
    str, typer.Argument(metavar="NET", help="Name of a network: see `funcnets list`.")
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Source of the values that you leave out: tuned, whose learning rate falls "
        "linearly to zero, or reference, the published one.",
        show_default="tuned",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Passes over the training images."),
]
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Images a step.")]
Side = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Pixels a side, to which images are resized.",
    ),
]
LimitTrain = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use the first N training images only."),
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print JSON, an object on each line.")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Directory of the four IDX files, or bundled for the images in the package.",
        show_default="FUNCNETS_DATA, the usual places, bundled",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="cpu, cuda or cuda:N.", show_default="cuda if there is a GPU"
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Compiler of the training step: native fuses element-wise operations into C++ "
        "loops, graph does without, inductor is PyTorch's compiler.",
        show_default="native on a CPU, else inductor",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", metavar="", help="Go on with the run from its last checkpoint."),
]
SaveEvery = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Save within epochs too: every N steps, or after a time such as 90s, 10m or 2h.",
        show_default="after each epoch",
    ),
]
