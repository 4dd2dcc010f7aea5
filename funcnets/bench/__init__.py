"""Benchmarks of `funcnets bench`: training steps compared with those of `nn.Module` and Flax.

Contenders are timed in turns, in one process.  Only ratios of such times mean anything, as machines
differ, and the speed of one machine drifts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from funcnets import data, models, random
from funcnets.bench import (
    epoch,
    flax_models,
    isolated,
    layer_profile,
    on_device,
    rule_timings,
    scaling,
    throughput,
)
from funcnets.bench.cases import Case
from funcnets.bench.contenders import (
    BACKENDS,
    COLUMNS,
    GPU_COLUMNS,
    UNCOMPILED,
    available_columns,
)
from funcnets.bench.table import render
from funcnets.compiler.backends.select import Backend, usual_backend
from funcnets.core import LayerError
from funcnets.precision import available as available_precisions

__all__ = ["BENCHMARKS", "Machine", "Plan", "cases", "columns", "machine", "names", "render"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The options of a benchmark, as on the command line, whose names its errors have.

    Attributes:
        cases: networks and sizes of batches.
        columns: names of contenders.
        precisions: names of `precision.POLICIES`.
        rounds: number of times that each contender is timed.
        seconds: no round of a case begins later than this after the first.
        data, limit_train, workers: of epochs: the data directory, the number of training images,
            and the processes of the DataLoader.
        processes: numbers of processes that divide a batch.
    """

    cases: tuple[Case, ...]
    columns: tuple[str, ...] = tuple(COLUMNS)
    precisions: tuple[str, ...] = available_precisions("cpu")
    rounds: int = 10
    seconds: float | None = None
    data: str | None = None
    limit_train: int | None = None
    workers: int = 2
    processes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_numbers(**{"--rounds": self.rounds})
        if self.seconds is not None and not self.seconds >= 0:
            raise ValueError(f"--seconds is {self.seconds}; expected 0 or more")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}; expected 0 or more")
        for case in self.cases:
            _check_processes(max(self.processes, default=1), case)
            _check_is_trainable(case)


class Machine(NamedTuple):
    """The machine that was measured."""

    torch: str
    device: str
    cpu_capability: str
    threads: int


def machine(device: str = "cpu") -> Machine:
    """Return the parts of the machine and its software that decide how fast a step is."""
    capability = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return Machine(torch.__version__, name, capability, torch.get_num_threads())


def cases(
    networks: Sequence[str],
    batch_size: int | None = None,
    side: int | None = None,
    device: str = "cpu",
) -> tuple[Case, ...]:
    """Return the networks, `all` for every one, at given sizes or those of the reference recipes.

    `batch_size` is in images and `side` in pixels; None takes the recipe's.

    Raises ValueError for an unknown network, or a size below 1.
    """
    _check_numbers(**{"--batch-size": batch_size, "--side": side})
    usual = [name for name, entry in models.INDEX.items() if entry.is_benchmarked]
    chosen = usual if "all" in networks else networks
    recipes = {name: models.get(name, "reference")[1] for name in chosen}
    return tuple(
        Case(name, batch_size or recipe.batch_size, side or recipe.side, device)
        for name, recipe in recipes.items()
    )


def columns(only: str | None = None, device: str = "cpu") -> tuple[str, ...]:
    """Return the columns in a list `only` like `jit,eager`; for None, all columns of the device.

    Raises ValueError for an unknown column, and for `flax` if Flax isn't installed.
    """
    is_gpu = device.startswith("cuda")
    chosen = names("--only", only, tuple(GPU_COLUMNS if is_gpu else COLUMNS))
    if only is not None and "flax" in chosen and not flax_models.is_installed():
        raise ValueError("--only has flax, which needs: pip install 'funcnets[bench-jax]'")
    return chosen


def names(option: str, given: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a list like `jit,eager`, in the order of `known`; all of them for None.

    Raises ValueError for an unknown name, with the `option` that it was given to.
    """
    chosen = known if given is None else [name.strip() for name in given.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(f"{option} has {name!r}; known are {', '.join(known)}")
    return tuple(name for name in known if name in chosen)


def step_rows(
    plan: Plan, report: Report
) -> Iterator[list[throughput.Timing | on_device.DeviceTiming] | list[throughput.Mean]]:
    """Yield throughputs of steps, a list for each network, and means over several networks."""
    timings: list[throughput.Timing | on_device.DeviceTiming] = []
    for case in plan.cases:
        timed = _timings(plan, case, report)
        yield timed
        timings += timed
        torch.compiler.reset()  # it keeps a graph for each signature, up to a limit
    if len(plan.cases) > 1 and (means := throughput.means(timings)):
        yield means


def _timings(
    plan: Plan, case: Case, report: Report
) -> list[throughput.Timing | on_device.DeviceTiming]:
    columns = available_columns(plan.columns, case.network)
    if not case.device.startswith("cuda"):
        how: Any = {"rounds": plan.rounds, "seconds": plan.seconds, "report": report}
        return [*throughput.time_steps(case, columns, plan.precisions, **how)]
    compiled = [column for column in columns if column not in UNCOMPILED]
    isolated.fill_caches([(case, column, name) for column in compiled for name in plan.precisions])
    operations = throughput.operations_of(case)
    rows = on_device.time_steps(
        case, columns, plan.precisions, operations=operations, rounds=plan.rounds, report=report
    )
    return [*rows]


def first_step_rows(plan: Plan, report: Report) -> Iterator[list[isolated.FirstStep]]:
    """Yield times to the first step, each in two processes of its own."""
    for case, precision in _each(plan):
        columns = available_columns(plan.columns, case.network)
        yield [isolated.time_first_step(case, column, precision) for column in columns]


def memory_rows(plan: Plan, report: Report) -> Iterator[list[isolated.Memory]]:
    """Yield peak memory, each in a process of its own."""
    for case, precision in _each(plan):
        columns = available_columns(plan.columns, case.network)
        yield isolated.measure_memory(case, columns, precision)


def lowering_rows(plan: Plan, report: Report) -> Iterator[list[rule_timings.RewriteTiming]]:
    """Yield times of lowerings, fusions and loops, and of the operations that they replace."""
    for case, precision in _each(plan):
        rows = rule_timings.time_rewrites(
            case, precision, plan.columns, rounds=plan.rounds, seconds=plan.seconds
        )
        if rows:
            yield rows
        else:
            report(f"{case.network}, {precision}: no lowering applies")


def profile_rows(plan: Plan, report: Report) -> Iterator[list[layer_profile.LayerTime]]:
    """Yield the times of a step by layer, a list for each network and precision."""
    for case, precision in _each(plan):
        yield layer_profile.profile_step(case, precision, _first_backend(plan), plan.rounds)


def epoch_rows(plan: Plan, report: Report) -> Iterator[list[epoch.Epoch]]:
    """Yield times of a whole epoch, and of the usual training loop."""
    backend = _first_backend(plan)
    for case in plan.cases:
        dataset = data.load(plan.data, device=case.device)
        if plan.limit_train is not None:
            dataset = data.limit(dataset, plan.limit_train)
        report(dataset.source)
        yield epoch.time_epochs(
            case,
            plan.precisions,
            dataset,
            rounds=plan.rounds,
            workers=plan.workers,
            backend=backend,
        )


def process_rows(plan: Plan, report: Report) -> Iterator[list[scaling.Scaling]]:
    """Yield times of steps in several processes, a list for each network and precision."""
    for case, precision in _each(plan):
        rows = []
        timed = scaling.time_processes(
            case, precision, _first_backend(plan), plan.processes, rounds=plan.rounds
        )
        for row in timed:
            report(f"{case.network}, {precision}, processes {row.processes}: timed")
            rows.append(row)
        yield rows


def _first_backend(plan: Plan) -> Backend:
    """Return the back end of the first column that has one."""
    given = (BACKENDS[column] for column in plan.columns if column in BACKENDS)
    return next(given, None) or usual_backend(plan.cases[0].device)


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")


def _check_processes(count: int, case: Case) -> None:
    if count > case.batch_size:
        raise ValueError(
            f"--processes has {count}, more than the {case.batch_size} images of a batch: give a "
            "larger --batch-size, or fewer processes"
        )
    gpus = torch.cuda.device_count()
    if count > 1 and case.device.startswith("cuda") and (case.device != "cuda" or count > gpus):
        raise ValueError(
            f"--processes has {count}, and --device is {case.device}: give --device cuda, of which "
            f"each process takes its own, and at most {gpus}"
        )


def _check_is_trainable(case: Case) -> None:
    """Raise ValueError unless the network takes such a batch, before other processes begin."""
    net, x = models.get(case.network)[0], torch.empty(case.shape, device="meta")
    key = random.key(0, device="meta")
    try:
        net.apply(*net.init(key, x), x, train=True, key=key)
    except LayerError as error:
        raise ValueError(
            f"{case.network} can't be trained at --side {case.side} and --batch-size "
            f"{case.batch_size}: {error}"
        ) from None


def _each(plan: Plan) -> Iterator[tuple[Case, str]]:
    return ((case, precision) for case in plan.cases for precision in plan.precisions)


BENCHMARKS: dict[str, Callable[[Plan, Report], Iterator[Sequence[NamedTuple]]]] = {
    "steps": step_rows,
    "first_step": first_step_rows,
    "memory": memory_rows,
    "lowerings": lowering_rows,
    "epoch": epoch_rows,
    "profile": profile_rows,
    "processes": process_rows,
}
