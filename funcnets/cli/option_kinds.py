"""Kinds of options: of which panel of the help they are, and how their values are shown."""

from pathlib import Path
from typing import Annotated, Any

import typer

DATA, RECIPE, RUN, MACHINE = "Data", "Recipe", "Run", "Machine"

# Values that are shown and completed; a test compares them with what configurations take.
CHOICES = {
    "optimizer": ("sgd", "adam", "adamw"),
    "recipe": ("tuned", "reference", "best"),
    "schedule": ("constant", "linear", "cosine", "one-cycle"),
    "backend": ("native", "graph", "inductor"),
    "precision": ("float32", "bfloat16", "tf32", "auto"),
}
NETWORKS = (
    *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "nin", "googlenet", "googlenet_paper"),
    *("lenet_bn", "lenet_bn_scratch", "resnet18", "resnet34", "resnet50", "densenet"),
)
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


def choice(name: str, help: str, panel: str, **options: Any) -> Any:
    """Return an option that takes one of `CHOICES`: they are shown, and completed by a shell."""
    known = CHOICES[name]

    def complete(incomplete: str) -> list[str]:
        return [value for value in known if value.startswith(incomplete)]

    listed = f"{', '.join(known[:-1])} or {known[-1]}"
    return value("NAME", f"{listed}{help}", panel, autocompletion=complete, **options)


def value(metavar: str, help: str, panel: str, *flags: str, **options: Any) -> Any:
    """Return an option that takes a value; without flags it is named like its argument."""
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **options)


def number(metavar: str, help: str, show_default: str) -> Any:
    """Return the annotation of an option of the recipe that takes a number."""
    return Annotated[float | None, value(metavar, help, RECIPE, show_default=show_default)]


def switch(flag: str, help: str, panel: str | None = None) -> Any:
    """Return an option without a value."""
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
