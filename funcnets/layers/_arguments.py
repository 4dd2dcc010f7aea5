"""Checks and text for the hyper-parameters of layers."""

from typing import Any

from funcnets._validate import check, is_whole

Size = int | tuple[int, int]
"""Number for both sides of an image, or (vertical, horizontal)."""


def pair(size: Size) -> tuple[int, int]:
    """Return `size` as (vertical, horizontal)."""
    return size if isinstance(size, tuple | list) else (size, size)


def check_counts(kind: str, **counts: Any) -> None:
    """Raise ValueError unless each of `counts` is a whole number, 1 or more."""
    for name, count in counts.items():
        check(f"{kind}: {name}", count, lambda n: is_whole(n, 1), "a whole number, 1 or more")


def check_sizes(kind: str, least: int, **sizes: Any) -> None:
    """Raise ValueError unless each of `sizes` is a whole number or two, `least` or more."""
    for name, size in sizes.items():
        sides = pair(size)
        if len(sides) != 2 or not all(is_whole(side, least) for side in sides):
            raise ValueError(
                f"{kind}: {name} is {size!r}; expected a whole number or two, {least} or more"
            )


def format_kind(name: str, *arguments: Any, **options: tuple[Any, Any]) -> str:
    """Return a layer's kind, such as `conv2d(64, 7, stride=2)`.

    Of the options, each given as (value, default), those that differ from their default are shown.
    """
    unusual = [f"{key}={value}" for key, (value, default) in options.items() if value != default]
    return f"{name}({', '.join([*map(str, arguments), *unusual])})"
