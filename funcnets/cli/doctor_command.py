"""Command that says what a machine has for trainings, and what to do about it: `funcnets doctor`.

torch is imported inside the checks: that it can't be imported is a finding too.
"""

import importlib.util
import json as json_format
import locale
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from funcnets.cli import options

OK, NOTE, FAILED = "ok", "note", "failed"
EXTRAS = {"plots": ("matplotlib",), "export": ("onnx", "onnxscript", "onnxruntime")}
LEAST_FREE_BYTES = 1 << 30
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Finding(NamedTuple):
    """Result of a check: `ok`, `note` if something could be better, `failed` if nothing trains."""

    check: str
    status: str
    found: str
    advice: str = ""


def doctor_command(json: options.Json = False) -> None:
    """Say what is found on this machine: torch, compiler, cores, GPU, data and cache.

    Exits with 0 unless training is impossible.
    """
    findings = list(examine())
    for finding in findings:
        if json:
            print(json_format.dumps(finding._asdict()))
            continue
        print(f"{finding.status:<7} {finding.check}: {finding.found}")
        if finding.advice:
            print(f"{'':<8}-> {finding.advice}")
    if any(finding.status == FAILED for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Yield the findings of all checks; a check that raises an exception is one too."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            is_vital = check in (_versions, _training)
            yield Finding(check.__name__.strip("_"), FAILED if is_vital else NOTE, text)


def _versions() -> Iterator[Finding]:
    import funcnets

    yield Finding("funcnets", OK, f"{funcnets.__version__}, Python {platform.python_version()}")
    try:
        import torch
    except (ImportError, OSError) as error:
        text = " ".join(str(error).split())
        yield Finding("torch", FAILED, text, "install it: pip install torch torchvision")
        return
    yield Finding("torch", OK, torch.__version__)


def _training() -> Iterator[Finding]:
    """Yield the finding of a training step of two images, computed operation by operation."""
    import torch

    from funcnets import models, optim, random, train

    net, recipe = models.get("lenet_bn")
    optimizer = optim.sgd(recipe.learning_rate)
    batch = (torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
    train_state = train.create(net, optimizer, random.key(0), batch[0])
    _, measured = train.make_train_step(net, optimizer)(train_state, batch)
    if measured["loss"].isfinite():
        yield Finding("training", OK, "a step of lenet_bn on the CPU gives a finite loss")
    else:
        advice = "reinstall torch for this processor"
        yield Finding("training", FAILED, "the loss of a step isn't finite", advice)


def _compiler() -> Iterator[Finding]:
    from funcnets.compiler.kernels import build

    command = os.environ.get("CXX") or "g++"
    if reason := build.reason_unavailable():
        advice = (
            "install g++, or name a compiler in CXX; until then trainings run without compiled "
            "loops, or by --backend inductor on a GPU"
        )
        yield Finding("C++ compiler", NOTE, " ".join(reason.split()), advice)
    else:
        yield Finding("C++ compiler", OK, f"{shutil.which(command.split()[0]) or command}")


def _cores() -> Iterator[Finding]:
    import torch

    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota = cpu_quota()
    threads = torch.get_num_threads()
    text = f"{total}, {usable} of them usable" + (f", a quota of {quota:g}" if quota else "")
    most = min(usable, quota or usable)
    if threads > most + 0.5:
        yield Finding(
            "cores",
            NOTE,
            f"{text}; torch uses {threads} threads",
            f"set OMP_NUM_THREADS={max(1, int(most))}",
        )
    else:
        yield Finding("cores", OK, f"{text}; torch uses {threads} threads")
    sets = torch.backends.cpu.get_cpu_capability()
    advice = "" if sets != "DEFAULT" else "expect slow trainings: no AVX2 was found"
    yield Finding("instruction sets", NOTE if advice else OK, sets, advice)


def cpu_quota(path: Path = CPU_QUOTA) -> float | None:
    """Return the number of cores that a container may use in the mean; None without a limit."""
    try:
        limit, period = path.read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _memory() -> Iterator[Finding]:
    from funcnets.data import memory

    free = memory.available()
    yield Finding("memory", OK, "not known" if free is None else f"{free / 1e9:.1f} GB free")


def _gpu() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("GPU", OK, f"{', '.join(names)}; CUDA {torch.version.cuda}")
    elif NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi"):
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "none usable"
        yield Finding(
            "GPU",
            NOTE,
            f"an NVIDIA driver is here, but {reason}",
            "install a torch whose CUDA the driver supports: see pytorch.org",
        )
    else:
        yield Finding("GPU", OK, "none; trainings run on the CPU")


def _data() -> Iterator[Finding]:
    from funcnets import data

    try:
        place = data.find()
    except data.DataError as error:
        yield Finding("data", NOTE, str(error), "correct FUNCNETS_DATA, or unset it")
        return
    if place == data.BUNDLED:
        yield Finding(
            "data",
            NOTE,
            "the part of Fashion-MNIST in the package",
            "for the full set: funcnets train --download",
        )
    else:
        yield Finding("data", OK, f"Fashion-MNIST in {place}")


def _cache() -> Iterator[Finding]:
    import warnings

    from funcnets.compiler import disk_cache

    place = disk_cache.location()
    files = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else []
    size = sum(path.stat().st_size for path in files) / 1e6
    text = f"{place}: {len(files)} files, {size:.1f} MB of at most {disk_cache.MAX_BYTES / 1e6:.0f}"
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        is_kept = disk_cache.directory() == place
    if is_kept:
        yield Finding("cache", OK, text)
    else:
        yield Finding(
            "cache",
            NOTE,
            f"{text}; it can't be used",
            "every process compiles anew: let XDG_CACHE_HOME name a directory of yours "
            "that nobody else can write to",
        )


def _places() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{here}: {free / 1e9:.1f} GB free"
    if not os.access(here, os.W_OK):
        yield Finding(
            "run directories",
            NOTE,
            f"{here} can't be written",
            "give another place by --run-dir DIR",
        )
    elif free < LEAST_FREE_BYTES:
        yield Finding("run directories", NOTE, text, "free some, or give a place by --run-dir DIR")
    else:
        yield Finding("run directories", OK, text)


def _locale() -> Iterator[Finding]:
    encoding = getattr(sys.stdout, "encoding", None) or "none"
    text = f"{locale.setlocale(locale.LC_CTYPE)}; output in {encoding}"
    if "utf" in encoding.lower():
        yield Finding("locale", OK, text)
    else:
        yield Finding("locale", NOTE, text, "set PYTHONUTF8=1, or LANG=C.UTF-8, to see all names")


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            yield Finding(
                f"extra {extra}",
                NOTE,
                f"without {', '.join(missing)}",
                f"if you want it: pip install 'funcnets[{extra}]'",
            )
        else:
            yield Finding(f"extra {extra}", OK, "installed")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _training,
    _compiler,
    _cores,
    _memory,
    _gpu,
    _data,
    _cache,
    _places,
    _locale,
    _extras,
)
