"""The command `funcnets bench`."""

import itertools
import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from funcnets.cli import option_kinds, options, pictures, recipe_options, terminal


def bench_command(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NET|all",
            help="Names of networks: see `funcnets list`.",
            show_default="lenet_bn",
        ),
    ] = None,
    batch_size: recipe_options.BatchSize = None,
    side: options.Side = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Turns of each step.")] = 10,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Begin no more rounds of a network after that long."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,...",
            help="Of jit, graph and inductor, which are funcnets; eager, eager-last, "
            "compiled and compiled-last, which are modules, plain and in channels_last; and "
            "flax, which needs the extra bench-jax. On GPUs also graph-last and jit-last, and the "
            "modules' modes reduce-overhead and max-autotune.",
            show_default="all that can be had",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Of float32, bfloat16 and, on GPUs, tf32.",
            show_default="all that the device has",
        ),
    ] = None,
    first_step: Annotated[
        bool,
        typer.Option(
            "--first-step", metavar="", help="Time the first step instead, cold and warm."
        ),
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", metavar="", help="Measure peak memory instead.")
    ] = False,
    lowerings: Annotated[
        bool,
        typer.Option(
            "--lowerings",
            metavar="",
            help="Time each lowering, fusion and loop against what it replaces instead.",
        ),
    ] = False,
    epoch: Annotated[
        bool,
        typer.Option("--epoch", metavar="", help="Time a whole epoch against the usual loop."),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            metavar="",
            help="Show where a step's time goes, by layer, forward and backward: the compiled "
            "graph of the first column, operation by operation.",
        ),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the profile as bars too, as PNG or SVG; needs the extra plots.",
        ),
    ] = None,
    data: options.Data = None,
    limit_train: options.LimitTrain = None,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Workers of the usual DataLoader, for --epoch.")
    ] = 2,
    processes: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Time a step in as many processes, which divide the batch, and its parts: "
            "computation and communication.",
        ),
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Compare training steps with those of modules, in turns, in one process.

    A ratio says how many times as fast a step is as the fastest module's at its precision.
    GFLOP/s are counted as those of direct convolutions, and stand beside those of a matrix
    product.  --data, --limit-train and --workers are for --epoch.
    """
    import torch

    from funcnets import bench
    from funcnets.cli.configuration import check_device
    from funcnets.precision import available

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    plan = bench.Plan(
        bench.cases(networks or ["lenet_bn"], batch_size, side, device),
        bench.columns(only, device),
        bench.names("--precision", precision, available(device)),
        rounds,
        seconds,
        data,
        limit_train,
        workers,
        option_kinds.whole_numbers("--processes", processes),
    )
    if picture is not None:
        _check_picture(picture, profile, len(plan.cases) * len(plan.precisions))
    chosen = {"first_step": first_step, "memory": memory, "lowerings": lowerings, "epoch": epoch}
    chosen["profile"] = profile
    chosen["processes"] = processes is not None
    kinds = [kind for kind, wanted in chosen.items() if wanted] or ["steps"]
    found = (rows for kind in kinds for rows in bench.BENCHMARKS[kind](plan, _note))
    head: Sequence[NamedTuple] = [bench.machine(device)]
    for rows in itertools.chain([head], found):
        if json:
            for row in rows:
                print(json_format.dumps({"kind": type(row).__name__, **row._asdict()}), flush=True)
        else:
            terminal.show(bench.render(rows))
        if picture is not None and rows is not head:
            _draw_profile(rows, picture)


def _check_picture(picture: Path, is_profile: bool, count: int) -> None:
    """Raise ValueError unless one profile is to be drawn, to a file of a known kind."""
    if not is_profile:
        raise ValueError("--picture is for --profile")
    if count > 1:
        raise ValueError("--picture is for one profile: give one network, and one --precision")
    pictures.check("--picture", picture)


def _draw_profile(rows: Sequence[Any], picture: Path) -> None:
    from funcnets import plots
    from funcnets.bench import layer_profile

    *layers, all_of_them, whole = rows
    title = (
        f"{whole.network}, {whole.precision}, batches of {whole.batch_size}: a step takes "
        f"{whole.total:.3g} ms; timed: {whole.timed}"
    )
    assert all_of_them.layer == layer_profile.ALL
    bars = [plots.LayerBar(row.layer, row.forward, row.backward, row.total) for row in layers]
    pictures.save("--picture", picture, plots.draw_profile(bars, title))
    print(picture, file=sys.stderr)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
