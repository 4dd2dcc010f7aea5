"""Lock of a run directory: one process at a time writes to a run."""

import os
import socket
import weakref
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked there
    fcntl = None

LOCK = ".lock"


class LockedError(RuntimeError):
    """Another process holds the lock.  Its text names the process, as `process 12 on host a`."""


class Lock:
    """Lock of a directory, held until `release`, or until the process ends in whatever way.

    Raises LockedError if it is held already, and OSError if the directory can't be written.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, descriptor)
        self._stat = os.fstat(descriptor)
        try:
            _lock(descriptor)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip()
            self.release()
            raise LockedError(holder or "another process") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    @property
    def is_in_place(self) -> bool:
        """True if the directory is still where it was when it was locked."""
        try:
            return os.path.samestat(self._stat, self.path.stat())
        except OSError:
            return False


def _lock(descriptor: int) -> None:
    """Take the lock.  Raises BlockingIOError if another process has it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # some file systems have no locks
