"""Checkpoints come back to the bit, or say what is wrong; a crash never costs the one before."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_values import (
    DTYPES,
    METADATA,
    WEIGHT,
    TrainState,
    as_nested_dicts,
    assert_same,
    random_bits,
    train_state,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from funcnets import checkpoint, optim, tree
from funcnets.checkpoint import CheckpointError, latest, load, prune, save, step_path

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
