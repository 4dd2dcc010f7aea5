"""Checkpoints come back to the bit, or say what is wrong; a crash never costs the one before."""

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from funcnets import _files, checkpoint, optim, tree
from funcnets.checkpoint import CheckpointError, damaged, latest, load, prune, save, step_path

WEIGHT = {"w": torch.full((3,), 10.0)}
METADATA = {"position": {"epoch": 3, "batch": 17}, "losses": [0.5, 1e-300], "net": "größer"}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


class TrainState(NamedTuple):
    step: Tensor
    params: Any
    state: Any
    opt_state: Any
    key: Tensor


def bits(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same(actual: Any, expected: Any) -> None:
    """The same structure, dtypes, shapes and bits (NaNs and negative zeros among them)."""
    actual, expected = tree.flatten(actual), tree.flatten(expected)
    assert actual[1] == expected[1]
    for a, b in zip(actual[0], expected[0], strict=True):
        assert (a.shape, a.dtype, bits(a)) == (b.shape, b.dtype, bits(b))


def as_nested_dicts(values: Any) -> Any:
    return tree.unflatten_named(dict(sorted(tree.flatten_named(values).items())))


def random_bits(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return random_bits(seed, shape, torch.uint8) > 127
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, dtype.itemsize)
    raw = torch.randint(256, size, generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def train_state(step: int = 100) -> TrainState:
    params = {
        "conv": {
            "weight": random_bits(step, (4, 3, 2, 2), torch.float32),
            "bias": random_bits(step + 1, (4,), torch.bfloat16),
        }
    }
    return TrainState(
        step=torch.tensor(step),
        params=params,
        state={},
        opt_state=optim.adam(optim.linear(0.1, 10)).init(params),
        key=torch.tensor([-1, 7], dtype=torch.int32),
    )


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
leaves = st.builds(random_bits, st.integers(0, 2**32), shapes, st.sampled_from(DTYPES))
names = st.text("abc0_/é", min_size=1, max_size=4)
trees = st.recursive(
    st.dictionaries(names, leaves, max_size=3),
    lambda inner: st.dictionaries(names, leaves | inner, max_size=3),
    max_leaves=6,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees, st.dictionaries(st.text(), json_values, max_size=3))
def test_any_tree_and_metadata_come_back_to_the_bit(tmp_path, values, metadata):
    place = tmp_path / "checkpoint"
    shutil.rmtree(place, ignore_errors=True)
    assert save(place, values, metadata=metadata) == place
    loaded, found = load(place, like=values)
    assert_same(loaded, values)
    assert found == metadata
    assert_same(load(place)[0], as_nested_dicts(values))


def test_a_train_state_comes_back_in_its_named_tuples(tmp_path):
    values = train_state()
    loaded, metadata = load(save(tmp_path / "a", values, metadata=METADATA), like=train_state(7))
    assert_same(loaded, values)
    assert metadata == METADATA
    assert isinstance(loaded, TrainState)
    assert isinstance(loaded.opt_state[0], optim.AdamState)
    nested, _ = load(tmp_path / "a")
    assert_same(nested["params"], as_nested_dicts(values.params))
    assert nested["opt_state"]["1"]["step"].item() == 0


def test_views_and_shared_memory_come_back_as_values(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    values = {
        "whole": base,
        "again": base,
        "part": base[1],
        "turned": base.transpose(0, 1),
        "every_second": base.flatten()[::2],
        "expanded": torch.ones(()).expand(3, 2),
        "channels_last": base.to(memory_format=torch.channels_last),
        "tracked": torch.ones(2, requires_grad=True),
        "nothing": torch.ones(0, 3),
        "nothing_again": torch.ones(0, 3),
    }
    before = tree.map(lambda leaf: leaf.detach().clone(), values)
    loaded, _ = load(save(tmp_path / "a", values), like=values)
    assert_same(loaded, before)
    assert_same(tree.map(torch.Tensor.detach, values), before)
    storages = [leaf.untyped_storage().data_ptr() for leaf in loaded.values() if leaf.numel()]
    assert len(set(storages)) == len(storages)
    assert loaded["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert not loaded["tracked"].requires_grad


def test_what_is_only_marked_as_conjugate_or_negative_comes_back_so(tmp_path):
    z = torch.tensor([1 + 2j, 3 - 4j])
    values = {
        "conjugate": z.conj(),
        "negative": torch._neg_view(torch.ones(3)),
        "imaginary": z.conj().imag,
        "both": torch._neg_view(z.conj()),
        "tracked": torch.ones(2, dtype=torch.cfloat, requires_grad=True).conj(),
    }
    place = save(tmp_path / "a", values)
    for loaded in (load(place)[0], load(place, like=values)[0]):
        for name, value in values.items():
            assert loaded[name].tolist() == value.tolist()
    assert values["conjugate"].is_conj()


def test_what_is_loaded_is_aligned_as_torchs_own_memory(tmp_path):
    # Views of the mapped file aren't, and compiled code copies such inputs at each call.
    values = {f"w{i}": torch.full((i,), i, dtype=torch.uint8) for i in range(1, 5)}
    place = save(tmp_path / "a", values)
    for like in (None, values):
        assert all(leaf.data_ptr() % 64 == 0 for leaf in load(place, like)[0].values())


def test_like_gives_memory_format_and_may_be_meta(tmp_path):
    values = {"weight": torch.rand(2, 3, 4, 4)}
    place = save(tmp_path / "a", values)
    like = {"weight": torch.empty(2, 3, 4, 4, memory_format=torch.channels_last)}
    loaded, _ = load(place, like)
    assert loaded["weight"].is_contiguous(memory_format=torch.channels_last)
    assert_same(loaded, values)
    loaded, _ = load(place, tree.map(lambda leaf: leaf.to("meta"), like))
    assert loaded["weight"].device.type == "cpu"
    assert_same(loaded, values)


def test_what_is_loaded_may_be_changed_without_changing_the_checkpoint(tmp_path):
    values = {"weight": torch.ones(3)}
    place = save(tmp_path / "a", values)
    for like in (None, values):
        load(place, like)[0]["weight"].zero_()
    assert_same(load(place)[0], values)


def test_the_files_are_what_the_format_says(tmp_path):
    place = save(
        tmp_path / "a",
        {"b": {"c": torch.ones(2, 3)}, "a": torch.tensor(1)},
        metadata={"z": 1, "y": 2},
    )
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "tensors.safetensors"]
    text = (place / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    assert manifest["version"] == 1
    assert manifest["metadata"] == {"z": 1, "y": 2}
    assert manifest["tensors"] == {
        "a": {"dtype": "int64", "shape": []},
        "b.c": {"dtype": "float32", "shape": [2, 3]},
    }
    size = (place / "tensors.safetensors").stat().st_size
    assert manifest["files"]["tensors.safetensors"]["bytes"] == size


def test_others_may_read_it_where_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        place = save(tmp_path / "a", {"w": torch.ones(1)})
    finally:
        os.umask(old)
    modes = [path.stat().st_mode & 0o777 for path in (place, *sorted(place.iterdir()))]
    assert modes == [0o755, 0o644, 0o644]


# A name that is taken


def test_the_same_again_does_nothing_and_another_is_refused(tmp_path):
    place = save(tmp_path / "a", train_state(1), metadata=METADATA)
    before = (place / "tensors.safetensors").stat().st_ino
    save(place, train_state(1), metadata=METADATA)
    assert (place / "tensors.safetensors").stat().st_ino == before
    for values, metadata in ((train_state(2), METADATA), (train_state(1), {})):
        with pytest.raises(CheckpointError, match="another complete checkpoint has this name"):
            save(place, values, metadata=metadata)
    assert_same(load(place, train_state())[0], train_state(1))
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("lost", ["manifest.json", "tensors.safetensors", "both"])
def test_an_incomplete_one_is_replaced(tmp_path, lost):
    place = save(tmp_path / "a", train_state(1))
    for path in list(place.iterdir()):
        if lost in (path.name, "both"):
            path.unlink()
    save(place, train_state(2))
    assert_same(load(place, train_state())[0], train_state(2))


def test_what_is_no_checkpoint_is_never_removed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("cat")
    (tmp_path / "file").write_text("text")
    for name in ("photos", "file"):
        with pytest.raises(CheckpointError, match=f"{name}: something that isn't a checkpoint"):
            save(tmp_path / name, train_state())
    assert (tmp_path / "photos" / "cat.png").read_text() == "cat"
    assert sorted(os.listdir(tmp_path)) == ["file", "photos"]


# Crashes


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


def test_leaves_that_arent_those_of_like_are_listed_ten_of_each(tmp_path):
    stored = {"both": torch.ones(2), "kind": torch.ones(3)}
    stored |= {f"old{i:02}": torch.ones(1) for i in range(11)}
    like = {"both": torch.ones(2, 1), "kind": torch.ones(3, dtype=torch.bfloat16)}
    like |= {f"new{i:02}": torch.ones(1) for i in range(12)}
    with pytest.raises(CheckpointError) as caught:
        load(save(tmp_path / "a", stored), like)
    message = str(caught.value)
    first_new = ", ".join(f"new{i:02}" for i in range(10))
    first_old = ", ".join(f"old{i:02}" for i in range(10))
    assert f"12 missing: {first_new} and 2 more; 11 unexpected: {first_old} and 1 more;" in message
    assert "1 of another shape: both [2] (expected [2, 1])" in message
    assert "1 of another dtype: kind float32 (expected bfloat16)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": 1.5}, "leaf a is a float; expected a tensor"),
        ({"a": {"b": None}}, "leaf a.b is a NoneType"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "one dotted name, a.b; rename keys"),
        ({1: torch.ones(1), "1": torch.ones(1)}, "one dotted name, 1; .*same string, as 1 and '1'"),
        ({"a.b": torch.ones(1), "a": torch.ones(1)}, r"a\.b: a part .*; rename keys with"),
        ({"a": torch.ones(1), "a.b": torch.ones(1)}, r"a\.b: a part .*; rename keys with"),
        ({"a": torch.ones(1, device="meta")}, "leaf a is a meta tensor"),
        (
            {"a": {"b": torch.ones(1, dtype=torch.complex128)}},
            "leaf a.b has dtype complex128, which .* expected one such as .* `torch.view_as_real`",
        ),
        ({"a": torch.empty(1, dtype=torch.uint4)}, "leaf a has dtype uint4"),
        (
            {"a": {"b": torch.eye(2).to_sparse()}},
            "leaf a.b is a sparse_coo tensor; expected a dense one: convert it, with `to_dense`",
        ),
        ({"a": torch.eye(2).to_mkldnn()}, "leaf a is a mkldnn tensor"),
        (
            {"a": torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged)},
            "leaf a is a nested tensor; expected a dense one: .*`to_padded_tensor`",
        ),
    ],
)
def test_trees_that_cant_be_kept_are_refused(tmp_path, values, message):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "a", values)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "metadata",
    [{"a": float("nan")}, {"a": (1, 2)}, {1: "a"}, {"a": torch.ones(1)}, {"a": Path("b")}],
    ids=["nan", "tuple", "integer key", "tensor", "path"],
)
def test_metadata_that_would_come_back_changed_is_refused(tmp_path, metadata):
    with pytest.raises(CheckpointError, match="metadata can't be kept as JSON"):
        save(tmp_path / "a", train_state(), metadata=metadata)
    assert os.listdir(tmp_path) == []


# Many checkpoints


def test_a_negative_step_has_no_place(tmp_path):
    with pytest.raises(ValueError, match="step is -1; expected 0 or more"):
        step_path(tmp_path, -1)


def test_latest_is_the_highest_step_and_ignores_the_rest(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None
    for step in (2, 99_999_999, 123_456_789):
        save(step_path(tmp_path, step), {"w": torch.tensor(step)})
    for name in ("step-99999999999", ".step-99999999.tmp-0a", "step-final"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-99999998").write_text("no directory")
    save(tmp_path / "zero", {"w": torch.tensor(0)})
    assert latest(tmp_path) == tmp_path / "step-123456789"
    with pytest.raises(CheckpointError, match="couldn't read it"):
        latest(tmp_path / "step-99999998")


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


def test_prune_spares_what_is_asked_for(tmp_path):
    first, second, third = (save(step_path(tmp_path, step), WEIGHT) for step in range(3))
    assert prune(tmp_path, 1, also=[first]) == [second]
    assert sorted(tmp_path.iterdir()) == [first, third]


def test_a_reader_beside_a_writer_always_finds_a_checkpoint(tmp_path, monkeypatch):
    """The writer saves newer ones and prunes all that the reader has listed."""
    first = save(step_path(tmp_path, 1), WEIGHT)
    is_complete = checkpoint._is_complete

    def overtaken(path):
        if path == first and first.exists():
            save(step_path(tmp_path, 2), WEIGHT)
            monkeypatch.setattr(checkpoint, "_is_complete", is_complete)
            prune(tmp_path, 1)
        return is_complete(path)

    monkeypatch.setattr(checkpoint, "_is_complete", overtaken)
    assert latest(tmp_path) == step_path(tmp_path, 2)
    assert not first.exists()


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
