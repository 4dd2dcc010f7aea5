"""Checkpoints: a tree of tensors and its metadata in a directory, saved atomically.

A checkpoint has two files: `tensors.safetensors`, and `manifest.json`, which has sizes, hashes,
shapes and dtypes, and a hash of itself.  It is written and synced to disk under a hidden name in
the same directory, and then renamed; a complete checkpoint is never replaced.  So whenever the
process or the machine stops, all earlier checkpoints are intact, and an unfinished one has a
hidden name.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from funcnets import _files, tree

FORMAT_VERSION = 1
TENSORS = "tensors.safetensors"
MANIFEST = "manifest.json"

_FINISHED = re.compile(r"step-(\d{8,})")
_UNUSABLE = (ValueError, LookupError, TypeError, AttributeError)  # by JSON of another form
_DAMAGED = "the checkpoint is damaged: remove it and use the one before it"


class CheckpointError(ValueError):
    """A checkpoint that can't be written or read; the message is one line, with its path."""


def step_path(directory: str | os.PathLike[str], step: int) -> Path:
    """Return the path of the checkpoint of a training step.

    Raises ValueError for a negative step.

    >>> from funcnets import checkpoint
    >>> checkpoint.step_path("runs/mine/checkpoints", 100).name
    'step-00000100'
    """
    if step < 0:
        raise ValueError(f"step is {step}; expected 0 or more")
    return Path(directory) / f"step-{step:08d}"


def save(
    directory: str | os.PathLike[str], values: Any, *, metadata: dict[str, Any] | None = None
) -> Path:
    """Write a tree of tensors and its metadata as the checkpoint `directory`; return the path.

    Saving the same values again does nothing; an incomplete checkpoint is replaced.

    Args:
        directory: path of the checkpoint, such as `step_path` returns; its parents are created.
        values: a tree of dense tensors, on any device.
        metadata: a dict that JSON gives back equal: string keys, lists, strings, finite numbers,
            booleans, None.

    Raises CheckpointError if another complete checkpoint has this name, for leaves that can't be
    stored or have the same dotted name, for other metadata, and if the directory can't be written.

    >>> import tempfile, torch
    >>> from funcnets import checkpoint
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = checkpoint.step_path(directory, 100)
    ...     _ = checkpoint.save(path, {"bias": torch.ones(2)}, metadata={"epoch": 1})
    ...     checkpoint.load(checkpoint.latest(directory))
    ({'bias': tensor([1., 1.])}, {'epoch': 1})
    """
    directory = Path(directory)
    tensors = _storable(directory, values)
    metadata = metadata or {}
    _check_metadata(directory, metadata)
    with _system_errors(directory, "write"):
        _files.make_directory(directory.parent)
        with _temporary_directory(directory) as temporary:
            manifest = _write(temporary, tensors, metadata)
            if not _exists_already(directory, manifest):
                os.rename(temporary, directory)
                _files.sync(directory.parent)
    return directory


def load(directory: str | os.PathLike[str], like: Any = None) -> tuple[Any, dict[str, Any]]:
    """Return the tree and the metadata of a checkpoint; every byte is checked by its hash.

    Args:
        directory: path of the checkpoint.
        like: a tree of tensors (meta tensors will do).  The result has its structure, and each
            leaf the memory format and device of the leaf in `like` (the CPU for a meta tensor).
            Without it, the result is nested dicts by the parts of the dotted names, in alphabetical
            order, on the CPU.

    Raises CheckpointError if the checkpoint is missing, damaged or of another format version,
    or if names, shapes or dtypes of its leaves aren't those of `like`.
    """
    directory = Path(directory)
    with _system_errors(directory, "read"):
        manifest = _read_manifest(directory)
        _check_file(directory, manifest["files"][TENSORS])
        # Copied below: these are views of a mapped file, less aligned than torch's own memory.
        mapped = _mapped(directory, manifest["tensors"])
    if like is None:
        named = {name: mapped[name].clone() for name in manifest["tensors"]}
        return tree.unflatten_named(named), manifest["metadata"]
    _check_leaves(directory, manifest["tensors"], _named(directory, like))
    loaded = tree.map_named(lambda name, leaf: _placed(mapped[name], leaf), like)
    return loaded, manifest["metadata"]


def latest(directory: str | os.PathLike[str]) -> Path | None:
    """Return the complete checkpoint `step-…` of the highest step in `directory`, or None.

    A checkpoint is complete if its manifest is JSON, and every file in the manifest has its size.
    Hashes are checked by `load` alone: a flipped bit is an error there.  Beside a process that
    saves and prunes, one is found at every time.

    Raises CheckpointError if the directory can't be read.
    """
    directory = Path(directory)
    with _system_errors(directory, "read"):
        listed: list[Path] = []
        found = None
        # All that were listed may have been pruned, after newer ones were saved.
        while found is None and listed != (listed := _newest_first(directory)):
            found = next(filter(_is_complete, listed), None)
        return found


def damaged(directory: str | os.PathLike[str]) -> list[Path]:
    """Return the incomplete checkpoints newer than `latest(directory)`, the newest first.

    Raises CheckpointError if the directory can't be read.
    """
    with _system_errors(Path(directory), "read"):
        newer = itertools.takewhile(lambda path: not _is_complete(path), _newest_first(directory))
        return [path for path in newer if path.exists()]


def prune(
    directory: str | os.PathLike[str], keep: int, *, also: Collection[Path] = ()
) -> list[Path]:
    """Remove all complete checkpoints `step-…` but the newest `keep` and those in `also`.

    Returns the paths that were removed.  What an interrupted save of this process left is removed
    too; see `remove_unfinished` for what other processes left.

    Raises ValueError if `keep` is below 1, and CheckpointError if one can't be removed.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; expected 1 or more checkpoints to keep")
    directory = Path(directory)
    with _system_errors(directory, "prune"):
        older = list(filter(_is_complete, _newest_first(directory)))[keep:]
        removed = [path for path in older if path not in also]
        for path in removed:
            # Renamed first, so that an interruption leaves no half of a checkpoint of that name.
            os.rename(path, _files.temporary_path(path))
        _remove_temporary(directory, is_own=True)
    return removed


def remove_unfinished(directory: str | os.PathLike[str]) -> None:
    """Remove what interrupted saves of any process left; none may be saving there now.

    Raises CheckpointError if it can't be removed.
    """
    with _system_errors(Path(directory), "prune"):
        _remove_temporary(Path(directory), is_own=False)


def _remove_temporary(directory: Path, *, is_own: bool) -> None:
    for path in directory.iterdir() if directory.is_dir() else ():
        if _FINISHED.fullmatch(_files.temporary_for(path.name, is_own=is_own) or ""):
            shutil.rmtree(path)


@contextlib.contextmanager
def _system_errors(directory: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory}: couldn't {verb} it ({_one_line(error)}); checkpoints already there are "
            "unchanged: check the path, its permissions and the room on its disk"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# Writing


def _named(directory: Path, values: Any) -> dict[str, Tensor]:
    """Return leaves by dotted name; raise CheckpointError for other leaves or equal names."""
    named = tree.flatten_named(values)
    if twice := [name for name, times in Counter(tree.names(values)).items() if times > 1]:
        raise CheckpointError(
            f"{directory}: two leaves have one dotted name, {tree.listed(twice)}; rename keys with "
            "a dot in them, or keys that become the same string, as 1 and '1'"
        )
    try:
        tree.unflatten_named(named)  # as `load` does without `like`
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}; rename keys with a dot in them") from None
    for name, leaf in named.items():
        if not isinstance(leaf, Tensor):
            raise CheckpointError(
                f"{directory}: leaf {name} is a {type(leaf).__name__}; expected a tensor: plain "
                "values belong in metadata"
            )
    return named


def _storable(directory: Path, values: Any) -> dict[str, Tensor]:
    """Return tensors that safetensors can write: on the CPU, contiguous, in separate storages."""
    storable: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, leaf in _named(directory, values).items():
        _check_kind(f"{directory}: leaf {name}", leaf)
        # A lazily conjugated or negated tensor is stored with its values, not with its flag.
        value = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        storable[name] = value
    return storable


def _check_kind(leaf_name: str, leaf: Tensor) -> None:
    """Raise CheckpointError for tensors of a kind that can't be stored."""
    if leaf.is_meta:
        raise CheckpointError(f"{leaf_name} is a meta tensor, without values")
    if leaf.layout != torch.strided or leaf.is_nested:
        kind = "nested" if leaf.is_nested else str(leaf.layout).removeprefix("torch.").lstrip("_")
        raise CheckpointError(
            f"{leaf_name} is a {kind} tensor; expected a dense one: convert it, with `to_dense` or "
            "`to_padded_tensor`"
        )
    if not _is_storable(leaf.dtype):
        raise CheckpointError(
            f"{leaf_name} has dtype {str(leaf.dtype).removeprefix('torch.')}, which safetensors "
            "can't store; expected one such as float64, bfloat16, int64 or bool: convert it, a "
            "complex one with `torch.view_as_real`"
        )


@functools.cache
def _is_storable(dtype: torch.dtype) -> bool:
    """True if safetensors can store the dtype, which depends on its version."""
    try:
        safetensors.torch.save({"value": torch.empty(2, dtype=dtype)})
    except (KeyError, SafetensorError):
        return False
    return True


def _check_metadata(directory: Path, metadata: dict[str, Any]) -> None:
    try:
        same = json.loads(json.dumps(metadata, allow_nan=False)) == metadata
        problem = "it isn't equal after writing and reading"
    except (TypeError, ValueError) as error:
        same, problem = False, _one_line(error)
    if not same:
        raise CheckpointError(
            f"{directory}: metadata can't be kept as JSON: {problem}; expected dicts with string "
            "keys, lists (not tuples), strings, finite numbers, booleans and None"
        )


@contextlib.contextmanager
def _temporary_directory(directory: Path) -> Iterator[Path]:
    """Create a hidden directory beside `directory`, removed at the end unless it was renamed."""
    temporary = _files.temporary_path(directory)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(directory: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Any]:
    """Write both files and sync them to disk; return the manifest."""
    path = directory / TENSORS
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    # safetensors makes the file readable by its owner alone; give it what the umask allows.
    path.chmod(directory.stat().st_mode & 0o666)
    _files.sync(path)
    body = {
        "version": FORMAT_VERSION,
        "files": {TENSORS: {"bytes": path.stat().st_size, "sha256": _file_hash(path)}},
        "tensors": {name: _description(value) for name, value in tensors.items()},
        "metadata": metadata,
    }
    manifest = {**body, "sha256": _hash(body)}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    _files.sync(directory / MANIFEST)
    _files.sync(directory)
    return manifest


def _exists_already(directory: Path, manifest: dict[str, Any]) -> bool:
    """True if this same checkpoint exists already; an incomplete one of its name is removed."""
    if not os.path.lexists(directory):
        return False
    if not directory.is_dir() or {path.name for path in directory.iterdir()} - {TENSORS, MANIFEST}:
        raise CheckpointError(
            f"{directory}: something that isn't a checkpoint has this name; choose another name"
        )
    if not _is_complete(directory):
        shutil.rmtree(directory)
        return False
    if _read_manifest(directory) != manifest:
        raise CheckpointError(
            f"{directory}: another complete checkpoint has this name, and is never replaced; "
            "choose another name, or remove it first"
        )
    _check_file(directory, manifest["files"][TENSORS])
    return True


# Reading


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _description(value: Tensor) -> dict[str, Any]:
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}


def _newest_first(directory: str | os.PathLike[str]) -> list[Path]:
    paths = Path(directory).iterdir() if os.path.exists(directory) else ()
    found = [(int(match[1]), path) for path in paths if (match := _FINISHED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _is_complete(directory: Path) -> bool:
    try:
        files = _files.parse_json(_files.read_bytes(directory / MANIFEST))["files"]
        size = (directory / TENSORS).stat().st_size
        return {*files} == {TENSORS} and bool(files[TENSORS]["bytes"] == size)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, *_UNUSABLE):
        return False


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{directory}: there is no checkpoint here ({MANIFEST} is missing); give a path that "
            "`save` or `latest` gave"
        )
    try:
        manifest = _files.parse_json(_files.read_bytes(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: isn't JSON ({_one_line(error)}); {_DAMAGED}") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version!r}, expected {FORMAT_VERSION}; read it with the "
            "version of funcnets that wrote it"
        )
    if manifest.get("sha256") != _hash({k: v for k, v in manifest.items() if k != "sha256"}):
        raise CheckpointError(f"{path}: its checksum doesn't match; {_DAMAGED}")
    for field in ("files", "tensors", "metadata"):
        if not isinstance(manifest.get(field), dict):
            raise CheckpointError(f"{path}: {field} isn't an object of JSON; {_DAMAGED}")
    files = manifest["files"]
    if {*files} != {TENSORS} or not isinstance(files[TENSORS], dict):
        raise CheckpointError(f"{path}: its files aren't {TENSORS} alone; {_DAMAGED}")
    return cast(dict[str, Any], manifest)


def _mapped(directory: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the file, if they are those that the manifest describes."""
    try:
        mapped = safetensors.torch.load_file(directory / TENSORS)
    except (*_UNUSABLE, RuntimeError) as error:
        raise CheckpointError(f"{directory / TENSORS}: {_one_line(error)}; {_DAMAGED}") from error
    held = {name: _description(value) for name, value in mapped.items()}
    if wrong := [name for name in {**expected, **held} if expected.get(name) != held.get(name)]:
        raise CheckpointError(
            f"{directory}: {TENSORS} doesn't hold what {MANIFEST} says: {tree.listed(wrong)}; "
            f"{_DAMAGED}"
        )
    return mapped


def _check_file(directory: Path, expected: dict[str, Any]) -> None:
    path = directory / TENSORS
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise CheckpointError(f"{path}: is missing; {_DAMAGED}")
    if size != expected.get("bytes"):
        raise CheckpointError(
            f"{path}: has {size} bytes, expected {expected.get('bytes')}; {_DAMAGED}"
        )
    if _file_hash(path) != expected.get("sha256"):
        raise CheckpointError(f"{path}: its checksum doesn't match; {_DAMAGED}")


def _check_leaves(
    directory: Path, stored: dict[str, dict[str, Any]], like: dict[str, Tensor]
) -> None:
    """Raise CheckpointError unless stored names, shapes and dtypes are those of `like`."""
    expected = {name: _description(leaf) for name, leaf in like.items()}
    both = [name for name in expected if name in stored]
    problems = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [name for name in stored if name not in expected],
    }
    for what in ("shape", "dtype"):
        problems[f"of another {what}"] = [
            f"{name} {stored[name][what]} (expected {expected[name][what]})"
            for name in both
            if stored[name][what] != expected[name][what]
        ]
    found = [f"{len(at)} {what}: {tree.listed(at)}" for what, at in problems.items() if at]
    if found:
        raise CheckpointError(
            f"{directory}: its leaves aren't those of `like`: {'; '.join(found)}; load it with the "
            "network and the optimizer that it was saved from"
        )


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """Return a copy of `value` with the memory format and device of `like`."""
    device = torch.device("cpu") if like.is_meta else like.device
    return torch.empty_like(like, device=device).copy_(value)
