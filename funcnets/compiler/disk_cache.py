"""The user's cache directory: libraries and programs that other processes compiled before.

A file is run as code, so it is used only if nobody else can have written it: the directory and the
file belong to this user, and no other user may write to them.  Each file's name has the SHA-256 of
its content, which is compared before it is opened: a half or changed file counts as missing.  Where
there is no such directory, a private one of this process takes its place, with a warning.
"""

import atexit
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 256 << 20  # of all files; the ones that were used least recently go first
KEY_DIGITS = 32


def key_of(*parts: str) -> str:
    """Return the key of a file that depends on these texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:KEY_DIGITS]


def location() -> Path:
    """Return the place of the user's cache; raise OSError if there is no home directory.

    It is `funcnets` in XDG_CACHE_HOME, if that is an absolute path, else in ~/.cache.
    """
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(caches):
        return Path(caches) / "funcnets"
    try:
        return Path.home() / ".cache" / "funcnets"
    except RuntimeError as error:
        raise FileNotFoundError("there is no home directory") from error


def directory() -> Path:
    """Return the directory to use, which is made: the user's, or a private one of this process.

    Raises OSError if neither can be made.
    """
    try:
        path = location()
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(path.lstat(), path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(f"{path} can't be written")
    except OSError as error:
        return _private(str(error))
    return path


@functools.cache
def _private(reason: str) -> Path:
    """Make a directory of this process alone, and warn that nothing is kept."""
    path = Path(tempfile.mkdtemp(prefix="funcnets-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    warnings.warn(f"funcnets: compiled code isn't kept for later processes: {reason}", stacklevel=2)
    return path


def _check_owner(status: os.stat_result, path: Path) -> None:
    """Raise PermissionError if another user may have written what is at `path`."""
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise PermissionError(f"{path} is a link or a special file")
    if not hasattr(os, "geteuid"):
        return  # there are no such owners and modes
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    if status.st_mode & 0o022:
        raise PermissionError(f"{path} can be written by other users: chmod go-w it")
    if stat.S_ISDIR(status.st_mode) and status.st_mode & 0o077:
        path.chmod(0o700)


def read(key: str, suffix: str) -> tuple[Path, bytes] | None:
    """Return path and content of the file with this key; None if there is none that is whole."""
    for path in directory().glob(f"{key}-*{suffix}"):
        content = _read_own(path)
        if content is not None and path.name == _name(key, content, suffix):
            return path, content
        _remove(path)
    return None


def _read_own(path: Path) -> bytes | None:
    """Return the content of a file that only this user can have written, else None."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            _check_owner(status, path)
            if not stat.S_ISREG(status.st_mode):
                return None
            content = file.read()
        os.utime(path)  # used now, so that others go first
    except OSError:
        return None
    return content


def write(key: str, suffix: str, content: bytes) -> Path:
    """Keep a file under a key, whole or not at all; raise OSError if it can't be written."""
    path = directory() / _name(key, content, suffix)
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _remove(Path(temporary))
        raise
    _prune(keep=path)
    return path


def _name(key: str, content: bytes, suffix: str) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()}{suffix}"


def entries() -> list[tuple[Path, int]]:
    """Return the files of the cache and their sizes in bytes, the least recently used first."""
    found: list[tuple[float, Path, int]] = []
    for path in _files():
        try:
            status = path.lstat()
        except OSError:
            continue  # another process has removed it
        found.append((status.st_mtime, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]


def _files() -> Iterator[Path]:
    yield from directory().iterdir()


def clear() -> int:
    """Remove all files of the cache, and return how many there were."""
    paths = [path for path, _ in entries()]
    for path in paths:
        _remove(path)
    return len(paths)


def _prune(keep: Path) -> None:
    """Remove the least recently used files while all of them are larger than `MAX_BYTES`."""
    found = entries()
    total = sum(size for _, size in found)
    for path, size in found:
        if total <= MAX_BYTES:
            return
        if path != keep:
            _remove(path)
            total -= size


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError:
        return
