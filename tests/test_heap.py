"""Steps take their memory from the heap; what else the process does, from where it did."""

import ctypes

import pytest
import torch

import funcnets
from funcnets.compiler.backends import heap

LARGE = 1 << 26  # bytes: beyond what glibc ever takes from its heap by itself
FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd")
REST = ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in (*FIELDS, *REST))


def usage():
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        pytest.skip("needs glibc")
    function.restype = Mallinfo
    return function()


def mapped():
    """Blocks that didn't come from the heap."""
    return usage().hblks


def beyond_the_heap():
    """A tensor for which the heap, as it is, has no room."""
    return torch.empty(usage().fordblks + LARGE, dtype=torch.uint8)


@pytest.fixture
def asked():
    if not heap.keep_memory():
        pytest.skip("needs glibc")


def test_jit_sets_no_option_of_the_process_unless_it_is_asked(monkeypatch):
    """Memory that is freed elsewhere goes back to the system as before."""
    options = []
    monkeypatch.setattr(heap, "_mallopt", lambda: lambda *option: options.append(option))
    monkeypatch.setattr(heap, "_is_asked", False)
    jitted = funcnets.jit(lambda x: x * 2, backend="graph")
    jitted(torch.ones(3))
    assert not options
    assert heap.keep_memory()
    jitted(torch.ones(3))
    assert options == [
        (heap.TRIM_THRESHOLD, -1),
        (heap.MMAP_THRESHOLD, heap.LARGEST_THRESHOLD),
        (heap.MMAP_MAX, 0),
        (heap.MMAP_MAX, heap.MOST_BLOCKS),
    ]


def test_large_blocks_come_from_the_heap_while_it_is_kept(asked):
    before = mapped()
    with heap.kept():
        inside = beyond_the_heap()
        assert mapped() == before
    outside = beyond_the_heap()
    assert mapped() == before + 1
    del inside, outside
    assert mapped() == before


def test_after_an_error_all_is_as_before(asked):
    before = mapped()
    with pytest.raises(ZeroDivisionError), heap.kept():
        1 / 0  # noqa: B018
    outside = beyond_the_heap()
    assert mapped() == before + 1
    del outside


def test_a_jitted_function_takes_it_from_the_heap(asked):
    x, jitted = torch.zeros(()), funcnets.jit(lambda x, y: x + y, backend="graph")
    before, y = mapped(), torch.zeros(()).expand(usage().fordblks + LARGE >> 2)
    result = jitted(x, y)
    assert mapped() == before
    assert result.shape == y.shape


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_mallopt", lambda: None)
    assert not heap.keep_memory()
    with heap.kept():
        assert torch.ones(3).sum() == 3
