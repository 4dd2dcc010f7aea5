"""Memory that is free for a data set: a set that doesn't fit is refused before it is read."""

import resource
from pathlib import Path

import torch

from funcnets.data.dataset import DataError

CGROUP = Path("/sys/fs/cgroup")


def available(device: str | torch.device = "cpu") -> int | None:
    """Return how many bytes can be allocated on a device; None if that isn't known.

    On a CPU it is the least of what the system, a container's limit and `ulimit -v` leave.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [left for left in (_system(), _container(), _process()) if left is not None]
    return max(0, min(known)) if known else None


def check(size: int, what: str, device: str | torch.device = "cpu") -> None:
    """Raise DataError if `what`, of `size` bytes, doesn't fit the memory of the device."""
    free = available(device)
    if free is not None and size > free:
        raise DataError(
            f"{what}: its images take {_shown(size)}, and {_shown(free)} of memory are free on "
            f"{device}; take fewer or smaller images, or free memory"
        )


def _shown(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _system() -> int | None:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _container() -> int | None:
    limit, used = _text(CGROUP / "memory.max"), _text(CGROUP / "memory.current")
    if not limit.isdigit() or not used.isdigit():
        return None
    # Pages of files count as used, but are given back when memory is wanted.
    fields = dict(line.split() for line in _text(CGROUP / "memory.stat").splitlines())
    return int(limit) - int(used) + int(fields.get("inactive_file", 0))


def _process() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(Path("/proc/self/statm")).split()
    if limit == resource.RLIM_INFINITY or not pages:
        return None
    return limit - int(pages[0]) * resource.getpagesize()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
