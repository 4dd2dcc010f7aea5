"""`funcnets cache`: what it shows of the cache of compiled code, and that it clears it."""

import json

import pytest

from funcnets.compiler import disk_cache


@pytest.fixture
def kept(own_directory, tmp_path, monkeypatch):
    """A cache with two files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    disk_cache.write("0" * 20, ".so", b"1" * 1000)
    disk_cache.write("1" * 20, ".program", b"2" * 500)
    return tmp_path / "caches" / "funcnets"


def test_it_shows_where_the_cache_is_and_what_is_in_it(run, kept):
    code, out, _ = run("cache")
    assert code == 0
    assert out.splitlines() == [str(kept), "1 compiled C++, 1 programs, 0.0 MB of at most 268 MB"]
    assert len(disk_cache.entries()) == 2


def test_it_clears_the_cache(run, kept):
    code, out, _ = run("cache", "--clear")
    assert code == 0
    assert out.splitlines()[-1] == "2 files removed"
    assert not disk_cache.entries()


def test_it_prints_json(run, kept):
    _, out, _ = run("cache", "--json")
    row = json.loads(out)
    assert (row["location"], row["bytes"], row["removed"]) == (str(kept), 1500, 0)
    assert row["files"] == {"compiled C++": 1, "programs": 1}
