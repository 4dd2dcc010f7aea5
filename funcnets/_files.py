"""Files that survive what stops a process: replaced at once, synced, and read without waiting."""

import functools
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp(-(?P<token>\w+))?")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Return a regular file that is open to be read.

    Raises ValueError for anything else: a named pipe would be waited for without end.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (closed by the caller)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ValueError("not a regular file")


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.  Raises ValueError for anything else."""
    with open_regular(path) as file:
        return file.read()


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text in UTF-8.  Raises ValueError for every other text."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@functools.cache
def _token_of(process: int) -> str:
    return secrets.token_hex(4)


def temporary_path(path: Path) -> Path:
    """Return a new hidden path beside `path`, to be renamed to it; no other process has it."""
    token = _token_of(os.getpid()) + secrets.token_hex(4)
    return path.with_name(f".{path.name}.tmp-{token}")


def temporary_for(name: str, *, is_own: bool = False) -> str | None:
    """Return the file name for which `name` is a temporary one, or None if it isn't such a name.

    With `is_own` a name that another process made is none.

    >>> from funcnets import _files
    >>> _files.temporary_for(".config.json.tmp-0a1b")
    'config.json'
    """
    match = _TEMPORARY.fullmatch(name)
    if not match:
        return None
    mine = (match["token"] or "").startswith(_token_of(os.getpid()))
    return match["name"] if mine or not is_own else None


def replace(path: Path, text: str) -> None:
    """Replace a file at once: whenever the process stops, the old or the new one is there."""
    temporary = temporary_path(path)
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Add lines to a file, by one write if they are few."""
    with path.open("ab") as file:
        file.write(text.encode("utf-8"))


def sync(path: Path) -> None:
    """Write a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, as `mkdir -p`, and sync each new name to disk."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync(directory.parent)
