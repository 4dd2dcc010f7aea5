"""Checkpoints that are damaged, and crashes and failing system calls while one is saved."""

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_values import (
    METADATA,
    WEIGHT,
    assert_same,
    train_state,
)

from funcnets import _files, checkpoint
from funcnets.checkpoint import CheckpointError, damaged, latest, load, prune, save, step_path


class Crash(BaseException):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Stop at the given system call of a save, with nothing tidied up after it."""
    calls = iter(range(1000))

    def stopping(function: Any) -> Any:
        def stopped(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= call:
                raise Crash
            return function(*arguments, **options)

        return stopped

    for owner, name in (
        (os, "rename"),
        (os, "fsync"),
        (Path, "mkdir"),
        (Path, "write_text"),
        (checkpoint.safetensors.torch, "save_file"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(owner, name, stopping(getattr(owner, name)))


# mkdir; save_file, fsync; write_text, fsync; fsync of the directory; rename; fsync of its parent
STAGES = 8


@pytest.mark.parametrize("call", range(STAGES))
def test_a_crash_at_any_call_leaves_the_one_before(tmp_path, call):
    first = save(step_path(tmp_path, 1), train_state(1), metadata=METADATA)
    with pytest.MonkeyPatch.context() as monkeypatch:
        crash_at(monkeypatch, call)
        with pytest.raises(Crash):
            save(step_path(tmp_path, 2), train_state(2))
    assert_same(load(first, train_state())[0], train_state(1))
    renamed = call == STAGES - 1
    newest = latest(tmp_path)
    assert newest == step_path(tmp_path, 2 if renamed else 1)
    assert_same(load(newest, train_state())[0], train_state(2 if renamed else 1))
    left_over = [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert len(left_over) == (0 < call < STAGES - 1)
    # The run goes on: the step is saved again, and what was left over goes.
    assert_same(
        load(save(step_path(tmp_path, 2), train_state(2)), train_state())[0], train_state(2)
    )
    assert prune(tmp_path, 1) == [first]
    assert os.listdir(tmp_path) == ["step-00000002"]


def test_there_are_no_more_stages_than_those(tmp_path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        crash_at(monkeypatch, STAGES)
        with pytest.raises(Crash):  # at the rmtree of what isn't there any more
            save(step_path(tmp_path, 2), train_state(2))
    assert_same(load(step_path(tmp_path, 2), train_state())[0], train_state(2))


@pytest.mark.parametrize("name", ["rename", "fsync"])
def test_a_failing_system_call_is_a_checkpoint_error_and_leaves_nothing(
    tmp_path, monkeypatch, name
):
    first = save(step_path(tmp_path, 1), train_state(1))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(
        CheckpointError, match=r"step-00000002: couldn't write it .*No space"
    ) as caught:
        save(step_path(tmp_path, 2), train_state(2))
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [first.name]
    assert_same(load(first, train_state())[0], train_state(1))


def test_a_file_that_cant_grow_is_a_checkpoint_error_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match=r"couldn't write it .*File too large"):
            save(tmp_path / "a", {"weight": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_place_that_cant_be_written_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(CheckpointError, match="couldn't write it"):
        save(tmp_path / "file" / "a" / "b", train_state())


# Damage


def damage(place: Path, how: str) -> None:
    tensors, manifest = place / "tensors.safetensors", place / "manifest.json"
    if how == "directory missing":
        shutil.rmtree(place)
    elif how == "manifest missing":
        manifest.unlink()
    elif how == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:50])
    elif how == "manifest edited":
        manifest.write_text(manifest.read_text().replace('"epoch": 3', '"epoch": 4'))
    elif how == "another version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    elif how == "no manifest":
        manifest.write_text("[1, 2]")
    elif how == "tensors missing":
        tensors.unlink()
    elif how == "tensors cut":
        os.truncate(tensors, 100)
    elif how == "bit flipped":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)


DAMAGES = {
    "directory missing": ("there is no checkpoint here", False),
    "manifest missing": ("manifest.json is missing", False),
    "manifest cut": ("manifest.json: isn't JSON", False),
    "no manifest": ("has format version None, expected 1", False),
    "manifest edited": ("manifest.json: its checksum doesn't match", True),
    "another version": ("has format version 2, expected 1", True),
    "tensors missing": ("tensors.safetensors: is missing", False),
    "tensors cut": (r"tensors.safetensors: has 100 bytes, expected \d+", False),
    "bit flipped": ("tensors.safetensors: its checksum doesn't match", True),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_found_and_named(tmp_path, how):
    first = save(step_path(tmp_path, 1), train_state(1), metadata=METADATA)
    second = save(step_path(tmp_path, 2), train_state(2), metadata=METADATA)
    damage(second, how)
    message, has_its_files = DAMAGES[how]
    for like in (None, train_state()):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(second, like)
        assert str(second) in str(caught.value)
        assert "\n" not in str(caught.value)
    # A checkpoint with all its files is checked by `load`; others are skipped.
    assert latest(tmp_path) == (second if has_its_files else first)
    is_there = how != "directory missing"
    assert damaged(tmp_path) == ([] if has_its_files or not is_there else [second])


def test_a_flipped_bit_is_found_when_the_same_is_saved_again(tmp_path):
    place = save(tmp_path / "a", train_state(1))
    damage(place, "bit flipped")
    with pytest.raises(CheckpointError, match=r"checksum doesn't match; .* remove it"):
        save(place, train_state(1))


# A tree that doesn't fit


def test_what_waits_or_is_nested_too_deeply_is_damaged(tmp_path):
    first = save(step_path(tmp_path, 1), WEIGHT)
    for step, spoil in ((2, os.mkfifo), (3, deep), (4, os.mkdir)):
        manifest = save(step_path(tmp_path, step), WEIGHT) / "manifest.json"
        manifest.unlink()
        spoil(manifest)
        with pytest.raises(CheckpointError) as caught:
            load(manifest.parent)
        assert "\n" not in str(caught.value)
    assert latest(tmp_path) == first
    assert len(damaged(tmp_path)) == 3


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def forge(place: Path, **changes: Any) -> None:
    """Write a manifest with other fields, whose own checksum is right."""
    path = place / "manifest.json"
    body = json.loads(path.read_text()) | changes
    del body["sha256"]
    path.write_text(json.dumps({**body, "sha256": checkpoint._hash(body)}))


TENSORS = "tensors.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"v": {"dtype": "float32", "shape": [3]}}}, "doesn't hold what.*: v, w;"),
        ({"tensors": {"w": {"dtype": "float32", "shape": [2]}}}, "doesn't hold what.*: w;"),
        ({"tensors": {"w": {"dtype": "int32", "shape": [3]}}}, "doesn't hold what.*: w;"),
        ({"tensors": {"w": 3}}, "doesn't hold what.*: w;"),
        ({"tensors": []}, "tensors isn't an object of JSON"),
        ({"files": {}}, "its files aren't tensors.safetensors alone"),
        ({"files": {TENSORS: {}, "../other": {}}}, "its files aren't tensors.safetensors alone"),
        ({"files": {TENSORS: 3}}, "its files aren't tensors.safetensors alone"),
        ({"files": {TENSORS: {}}}, "expected None"),
        ({"metadata": None}, "metadata isn't an object of JSON"),
    ],
    ids=str,
)
def test_a_manifest_is_checked_against_the_file_of_tensors(tmp_path, changes, message):
    place = save(tmp_path / "a", WEIGHT)
    forge(place, **changes)
    for like in (None, WEIGHT):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(place, like)
        assert "\n" not in str(caught.value)


def test_a_crash_while_pruning_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for step in range(3):
        save(step_path(tmp_path, step), {"w": torch.tensor(step)})
    with monkeypatch.context() as patch:
        crash_at(patch, 2)  # both renamed, none removed
        with pytest.raises(Crash):
            prune(tmp_path, 1)
    assert latest(tmp_path) == step_path(tmp_path, 2)
    assert prune(tmp_path, 1) == []
    assert os.listdir(tmp_path) == ["step-00000002"]


def test_prune_keeps_the_newest_and_removes_only_its_own(tmp_path):
    for step in range(5):
        save(step_path(tmp_path, step), {"w": torch.tensor(step)})
    damage(step_path(tmp_path, 4), "tensors cut")
    save(tmp_path / "best", {"w": torch.tensor(9)})
    own = _files.temporary_path(step_path(tmp_path, 3))
    own.mkdir()
    (tmp_path / ".step-00000003.tmp-0a1b").mkdir()  # of another process, which may be saving
    (tmp_path / ".other").mkdir()
    assert prune(tmp_path, 2) == [step_path(tmp_path, 1), step_path(tmp_path, 0)]
    left = ["step-00000002", "step-00000003", "step-00000004"]
    others = [".other", ".step-00000003.tmp-0a1b"]
    assert sorted(os.listdir(tmp_path)) == [*others, "best", *left]
    checkpoint.remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".other", "best", *left]
    assert prune(tmp_path / "missing", 1) == []
    with pytest.raises(ValueError, match="keep is 0; expected 1 or more"):
        prune(tmp_path, 0)
