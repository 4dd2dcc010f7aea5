"""The user's cache holds only whole files that nobody else can have written."""

import os
import stat
from pathlib import Path

import pytest

from funcnets.compiler import disk_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    disk_cache._private.cache_clear()
    yield tmp_path / "caches" / "funcnets"
    disk_cache._private.cache_clear()


KEY, OTHER = disk_cache.key_of("one"), disk_cache.key_of("two")


def private():
    with pytest.warns(UserWarning, match="isn't kept for later processes") as warned:
        path = disk_cache.directory()
    assert disk_cache.directory() == path  # with no second warning
    return path, str(warned[0].message)


def test_what_is_written_is_read(cache):
    assert disk_cache.read(KEY, ".so") is None
    path = disk_cache.write(KEY, ".so", b"content")
    assert path.parent == cache
    assert disk_cache.read(KEY, ".so") == (path, b"content")
    assert disk_cache.read(OTHER, ".so") is None
    assert disk_cache.read(KEY, ".program") is None
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_directory_that_others_can_read_becomes_private(cache):
    cache.mkdir(parents=True, mode=0o755)
    cache.chmod(0o755)
    assert disk_cache.directory() == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_directory_that_others_can_write_is_not_used(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    path, message = private()
    assert path != cache
    assert "can be written by other users" in message


def test_a_link_is_not_followed(cache, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    path, message = private()
    assert path not in (cache, tmp_path / "elsewhere")
    assert "is a link or a special file" in message


def test_the_directory_of_another_user_is_not_used(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    _, message = private()
    assert "belongs to another user" in message


def test_a_relative_place_is_ignored(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert disk_cache.directory() == tmp_path / "home" / ".cache" / "funcnets"
    assert not (tmp_path / "relative").exists()


@pytest.mark.parametrize("damage", ["half", "flipped", "empty", "link", "fifo", "writable"])
def test_a_file_that_is_not_ours_or_not_whole_is_missing(cache, tmp_path, damage):
    path = disk_cache.write(KEY, ".so", b"content")
    if damage == "writable":
        path.chmod(0o666)
    elif damage == "link":
        path.rename(tmp_path / "target")
        path.symlink_to(tmp_path / "target")
    elif damage == "fifo":
        path.unlink()
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes({"half": b"con", "flipped": b"contenu", "empty": b""}[damage])
    assert disk_cache.read(KEY, ".so") is None
    disk_cache.write(KEY, ".so", b"content")
    assert disk_cache.read(KEY, ".so") == (path, b"content")


def test_the_size_is_bounded_and_what_was_used_stays(monkeypatch):
    monkeypatch.setattr(disk_cache, "MAX_BYTES", 25)
    paths = [disk_cache.write(disk_cache.key_of(str(i)), ".so", bytes(10)) for i in range(2)]
    for i, path in enumerate(paths):
        os.utime(path, (i, i))
    assert disk_cache.read(disk_cache.key_of("0"), ".so")  # used last now
    last = disk_cache.write(disk_cache.key_of("2"), ".so", bytes(10))
    assert {path for path, _ in disk_cache.entries()} == {paths[0], last}
    assert disk_cache.clear() == 2
    assert disk_cache.entries() == []


def test_a_full_disk_leaves_nothing_behind(cache, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk_cache.write(KEY, ".so", b"content")
    assert list(cache.iterdir()) == []
