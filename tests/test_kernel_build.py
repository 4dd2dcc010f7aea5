"""C++ is compiled once for a machine, and where it can't be, there is an answer."""

import ctypes
import functools
import os
import subprocess
import sys

import pytest
import torch

import funcnets
from funcnets.compiler import CompileError, disk_cache
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
    disk_cache._private.cache_clear()


def files(directory):
    return sorted((path.name, path.stat().st_ino) for path in directory.iterdir())


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
    path = disk_cache.directory() / name
    path.write_bytes(damaged)
    assert build.load(SOURCE).twice is not None
    ((name, _),) = files(path.parent)
    assert (path.parent / name).read_bytes() != damaged


def test_half_a_library_is_built_anew(cache, tmp_path, monkeypatch):
    """Loading it would end the process by a signal."""
    build.load(SOURCE)
    ((name, _),) = files(cache)
    whole = (cache / name).read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    forget()
    (disk_cache.directory() / name).write_bytes(whole[: len(whole) // 2])
    assert build.load(SOURCE).twice is not None


def test_a_compiler_has_a_session_and_a_time_limit(monkeypatch, tmp_path):
    """So Ctrl-C doesn't reach it, and one that hangs is no endless wait."""
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nps -o sid= -p $$ | tr -d ' ' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError) as error:
        build._output([str(compiler)])
    assert int(error.value.stderr) != os.getsid(0)
    compiler.write_text("#!/bin/sh\nsleep 60 & wait\n")
    monkeypatch.setattr(build, "MAX_SECONDS", 0.2)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "target", functools.cache(lambda: "a compiler that hangs"))
    assert build.try_load(SOURCE) == f"{compiler} took longer than 0.2 s"


def test_messages_that_are_no_text_are_read(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nprintf 'error: \\377\\376' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError) as error:
        build._output([str(compiler)])
    assert error.value.stderr.startswith("error: ")


def test_a_kernel_that_cannot_be_built_is_left_out(monkeypatch):
    """With a warning, before anything runs: a step that fails later would be half done."""
    x, weight = torch.ones(2, 1, 12, 12), torch.ones(2, 1, 5, 5)
    convolve = funcnets.jit(torch.nn.functional.conv2d, backend="graph")
    assert "few_channels.forward" in convolve.trace(x, weight).fired
    monkeypatch.setattr(build.Library, "wait", lambda self: "g++ was killed")
    with pytest.warns(UserWarning, match=r"a kernel can't be compiled \(g\+\+ was killed\)"):
        result = convolve(x, weight)
    torch.testing.assert_close(result, torch.nn.functional.conv2d(x, weight))


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.load(SOURCE) is None


def test_no_code(cache):
    assert build.load("this is no C++") is None
    assert files(cache) == []


def test_no_place_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="isn't kept for later processes"):
        assert build.load(SOURCE) is not None


def test_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", home)
    with pytest.warns(UserWarning, match="there is no home directory"):
        assert build.load(SOURCE) is not None


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
    with pytest.raises(CompileError, match=r"there is no C\+\+ compiler none"):
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
