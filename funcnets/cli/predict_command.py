"""The command `funcnets predict`."""

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from funcnets.cli import options
from funcnets.cli.option_kinds import directory

if TYPE_CHECKING:
    from funcnets.runs import LoadedRun

IMAGES_AT_ONCE = 64


def predict_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", parser=directory, help="A run directory.")],
    files: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="PNG and JPEG files.")],
    top: Annotated[int, typer.Option(metavar="K", help="Classes that are shown of each.")] = 3,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Name the most probable classes of images, by the network of a run.

    An image is made grey or coloured, and its middle square is resized, as the run's network needs
    it.  The checkpoint is the newest, or with a validation part that of the best epoch.
    --json prints {"file": ..., "top": [{"class": ..., "probability": ...}, ...]} for each image.
    """
    import torch

    from funcnets import data, runs
    from funcnets.cli.configuration import check_device

    if top < 1:
        raise ValueError(f"--top is {top}; expected 1 or more")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    trained = runs.load(run, device=device)
    config = trained.config
    read = [data.read_image(file, config.channels, config.side) for file in files]
    for part, names in zip(torch.stack(read).split(IMAGES_AT_ONCE), _parts(files), strict=True):
        probabilities = trained.predict(part.to(device)).cpu()
        for name, row in zip(names, probabilities, strict=True):
            _print(name, _most_probable(trained, row, top), json)


def _parts(files: list[Path]) -> list[list[Path]]:
    return [files[at : at + IMAGES_AT_ONCE] for at in range(0, len(files), IMAGES_AT_ONCE)]


def _most_probable(trained: "LoadedRun", row: Any, top: int) -> list[dict[str, Any]]:
    """Return the `top` classes by their probabilities in a row, the best first."""
    values, numbers = row.topk(min(top, len(row)))
    return [
        {"class": trained.classes[number], "probability": value}
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
    ]


def _print(file: Path, best: list[dict[str, Any]], json: bool) -> None:
    if json:
        print(json_format.dumps({"file": str(file), "top": best}))
    else:
        shown = ", ".join(f"{each['class']} {each['probability']:.3f}" for each in best)
        sys.stdout.write(f"{file}: {shown}\n")
