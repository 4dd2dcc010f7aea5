"""Values of a configuration from a file: TOML, or the config.json of a run."""

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from funcnets import _files
from funcnets.cli.configuration import UsageError
from funcnets.runs import FACTS, Config, SweepConfig
from funcnets.runs.json_records import RecordError, check


def read(path: Path, kind: type[Config]) -> dict[str, Any]:
    """Return the fields of a configuration that a file gives; its keys are those of `kind`.

    Facts about the data are left out, as the data give them.

    Raises UsageError for a file that can't be read, an unknown key, or a value of another type.
    """
    values = _parse(path)
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise UsageError(f"--config {path}: no field is called {key!r}: {hint}")
    chosen = {key: value for key, value in values.items() if value is not None and key not in FACTS}
    try:
        chosen = check(kind, chosen, is_part=True)
    except RecordError as error:
        raise UsageError(f"--config {path}: {error}") from None
    return _of_members(chosen) if kind is SweepConfig else chosen


def _of_members(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a sweep: the first member's rate and seed are those of all."""
    rate = values.pop("learning_rate", None)
    values.pop("seed", None)
    return values if rate is None else {"rates": (rate,), **values}


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = _files.read_bytes(path).decode("utf-8")
        values = _files.parse_json(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"--config {path}: can't be read ({error.strerror})") from None
    except ValueError as error:
        expected = "JSON" if path.suffix == ".json" else "TOML, such as epochs = 20"
        raise UsageError(f"--config {path}: isn't {expected} ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: holds no object of JSON, with a value for each field")
    return values


def merged(given: dict[str, Any], path: Path | None, kind: type[Config]) -> dict[str, Any]:
    """Return the fields that flags give, and for others those of a file, if there is one.

    Flags that choose data replace both the name and the place that the file has.
    """
    if path is None:
        return given
    from_file = read(path, kind)
    if "data" in given or "dataset" in given:
        from_file = {k: v for k, v in from_file.items() if k not in ("data", "dataset")}
    return {**from_file, **given}
