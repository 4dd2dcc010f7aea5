"""C++ is compiled once for a machine, and where it can't be, there is an answer."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from funcnets.compiler import CompileError
from funcnets.compiler.kernels import build

SOURCE = 'extern "C" double twice(double x) { return 2 * x; }'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path / "funcnets"
    forget()


def forget():
    build.try_load.cache_clear()
    build.target.cache_clear()


def files(directory):
    return sorted((path.name, path.stat().st_mtime_ns) for path in directory.iterdir())


def test_a_library_is_built_once(cache):
    function = build.load(SOURCE).twice
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    assert function(1.5) == 3
    built = files(cache)
    assert len(built) == 1
    build.try_load.cache_clear()
    assert build.load(SOURCE) is not None
    assert files(cache) == built
    assert build.load(SOURCE + "\n") is not None
    assert len(files(cache)) == 2


@pytest.mark.parametrize("damaged", [b"", bytes(10_000), b"this is no library" * 1000])
def test_a_damaged_library_is_built_anew(cache, tmp_path, monkeypatch, damaged):
    build.load(SOURCE)
    ((name, _),) = files(cache)
    # In another directory, as the linker opens no path twice.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    forget()
    path = build.cache_directory() / name
    path.write_bytes(damaged)
    assert build.load(SOURCE).twice is not None
    assert path.read_bytes() == (cache / name).read_bytes()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("sync") or sync(file))
    monkeypatch.setattr(Path, "replace", lambda *paths: calls.append("name") or replace(*paths))
    with build.atomic_write(tmp_path / "file") as file:
        file.write_bytes(b"content")
    assert calls == ["sync", "name"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.load(SOURCE) is None


def test_no_code(cache):
    assert build.load("this is no C++") is None
    assert files(cache) == []


def test_no_place_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build.load(SOURCE) is None


def test_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", home)
    assert build.load(SOURCE) is None


def test_a_library_is_compiled_while_other_work_goes_on(cache):
    library = build.Library(SOURCE)
    function = library["twice"]
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    assert function(1.5) == 3


def test_what_a_compiler_cannot_compile_is_told_when_it_is_called():
    library = build.Library("this is no C++")
    with pytest.raises(
        CompileError, match=r"can't compile .*error: .* with CXX=none the graph does without"
    ):
        library["twice"]


def test_a_compiler_of_c_is_none(monkeypatch):
    monkeypatch.setenv("CXX", "gcc")
    assert not build.is_available()


def test_a_compiler_may_be_told_more(monkeypatch):
    monkeypatch.setenv("CXX", "env g++ -O1")
    assert build.load(SOURCE) is not None


def test_without_a_compiler_a_function_is_refused_when_it_is_called(monkeypatch):
    monkeypatch.setenv("CXX", "none")
    with pytest.raises(CompileError, match="there is no compiler none"):
        build.Library(SOURCE)["twice"]


FORKED = """
import os, signal, sys
from funcnets.compiler.kernels import build

source = 'extern "C" int number() { return NUMBER; }'
ended = build.Library(source.replace("NUMBER", "1"))
ended["number"]()
pending = build.Library(source.replace("NUMBER", "2"))
child = os.fork()
if child == 0:
    signal.alarm(60)  # which ends it, should it wait for ever
    begun = build.Library(source.replace("NUMBER", "3"))
    sys.exit([each["number"]() for each in (begun, pending, ended)] != [3, 2, 1])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or pending["number"]() != 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_compiles_what_it_needs():
    """What was begun before it was forked, as what it begins: it has no thread of its parent's."""
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=120).returncode == 0
