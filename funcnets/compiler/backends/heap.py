"""The C library's heap: what a step frees stays with the process, for the next step to take.

By default glibc takes blocks beyond 32 MB from the system and gives them back when they are freed,
and the system clears each page again when it is first touched: 75 MB of zeros take 33 ms so, and
4 ms in memory that was kept.
"""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator

# Of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
MOST_BLOCKS = 65536  # glibc's default for MMAP_MAX
LARGEST_THRESHOLD = 32 << 20  # which glibc comes to by itself, unless it is told anything else


_is_asked = False


def keep_memory() -> bool:
    """Let the graphs of `jit` keep the memory that they free, for their next call.

    The command line calls this; a program of your own may.  It sets options of glibc for the whole
    process and for good: memory that anything else in the process frees, in blocks of up to 32 MB,
    stays with the process too.

    Returns:
        False, and nothing is changed, if the C library isn't glibc.
    """
    global _is_asked
    option = _mallopt()
    if option is None:
        return False
    if not _is_asked:
        option(TRIM_THRESHOLD, -1)
        option(MMAP_THRESHOLD, LARGEST_THRESHOLD)
        _is_asked = True
    return True


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """While this runs, memory comes from the heap, which grows as needed and isn't given back.

    The heap stays as large as it was at its largest.  Nothing is changed, unless `keep_memory` was
    called.
    """
    option = _mallopt() if _is_asked else None
    if option is None:
        yield
        return
    option(MMAP_MAX, 0)
    try:
        yield
    finally:
        option(MMAP_MAX, MOST_BLOCKS)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
