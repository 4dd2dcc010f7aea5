"""Records from JSON files, which may have been edited: each field is checked to be of its type."""

import inspect
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from funcnets import _files

NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class RecordError(ValueError):
    """A record isn't what it should be; the message names the field and what was expected."""


def read(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises OSError if the file can't be read, RecordError if it holds something else.
    """
    return parse(_text(path))


def read_lines(kind: type, path: Path) -> list[dict[str, Any]]:
    """Return the fields of `kind` in each line of a file of JSON lines.  Raises as `read` does."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            rows.append(check(kind, parse(line)))
        except RecordError as error:
            raise RecordError(f"line {number}: {error}") from None
    return rows


def _text(path: Path) -> str:
    try:
        return _files.read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"isn't text in UTF-8 ({error.reason}); expected JSON") from None
    except ValueError as error:
        raise RecordError(f"is {error}; expected JSON") from None


def parse(text: str) -> dict[str, Any]:
    """Return the object in a JSON text.  Raises RecordError if it holds something else."""
    try:
        values = _files.parse_json(text)
    except ValueError as error:
        raise RecordError(f"isn't JSON ({error})") from None
    if not isinstance(values, dict):
        raise RecordError(f"holds {_shown(values)}; expected an object of JSON")
    return values


def check(kind: type, values: Mapping[str, Any], *, is_part: bool = False) -> dict[str, Any]:
    """Return the entries of `values` that are fields of `kind`, a dataclass or named tuple.

    A list becomes the tuple that the field expects.  Raises RecordError if a field without a
    default is missing, unless `is_part`, or one is of another type.
    """
    hints = get_type_hints(kind)
    for name in () if is_part else _required(kind):
        if name not in values:
            raise RecordError(f"{name} is missing; expected {_expected(hints[name])}")
    known = {name: _as_tuple(values[name], hints[name]) for name in hints if name in values}
    for name, value in known.items():
        if not _fits(value, hints[name]):
            raise RecordError(f"{name} is {_shown(value)}; expected {_expected(hints[name])}")
    return known


def _as_tuple(value: Any, hint: Any) -> Any:
    """Return a list as the tuple that is expected in its place: JSON has no tuples."""
    return tuple(value) if get_origin(hint) is tuple and isinstance(value, list) else value


def _required(kind: type) -> list[str]:
    parameters = inspect.signature(kind).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, the values of a literal, or else the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType, Literal) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    # true and false are no numbers here, though Python counts with them; 1 is a float too.
    kinds = _choices(hint)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        return f"a list, each {_expected(get_args(hint)[0])}"
    return " or ".join(NAMES.get(kind, "null") for kind in _choices(hint))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
