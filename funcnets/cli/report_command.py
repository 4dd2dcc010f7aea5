"""Command that writes a page about runs: `funcnets report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from funcnets.cli import options
from funcnets.cli.option_kinds import directory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from funcnets.cli.preparation import Setup
    from funcnets.plots.html_page import RunReport, Table
    from funcnets.runs import Config, EpochRow, MemberRow, SweepConfig

MISTAKES = 24


def report_command(
    run: Annotated[
        list[Path], typer.Argument(metavar="RUN", parser=directory, help="Run directories.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page.",
            show_default="RUN/report.html; report.html for several runs",
        ),
    ] = None,
    dataset: options.DataSet = None,
    data: options.Data = None,
    device: options.Device = None,
) -> None:
    """Write one HTML page about runs, which needs no network.

    It has the curves, the confusion matrix, the worst mistakes, the configuration, the environment,
    the layers, and a comparison with published results.
    """
    from funcnets import _files
    from funcnets.cli import run_results
    from funcnets.plots.html_page import render_page
    from funcnets.runs import RunDirectory

    labels = run_results.names_of(run)
    directories = [RunDirectory(path) for path in run]
    curves = [
        curve
        for each, label in zip(directories, labels, strict=True)
        for curve in run_results.curves_of(each, label)
    ]
    given = {"dataset": dataset, "data": data, "device": device}
    fields = options.fields(options.EVAL_FIELDS, given)
    reports = [
        _report(run_results.open_run(each.path, fields), label)
        for each, label in zip(directories, labels, strict=True)
    ]
    path = out or (run[0] / "report.html" if len(run) == 1 else Path("report.html"))
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.replace(path, render_page(", ".join(labels), curves, reports))
    print(path)


def _report(setup: "Setup", label: str) -> "RunReport":
    """Return what the page shows of a run."""
    from dataclasses import asdict

    from funcnets import losses, runs
    from funcnets.cli import run_results
    from funcnets.plots.html_page import RunReport

    config, predictions = setup.config, run_results.predict(setup)
    loss = float(losses.cross_entropy(predictions.logits, predictions.labels))
    rows = _rows(setup)
    layers = _layers(setup)
    figures = {
        "test accuracy": f"{predictions.accuracy:.4f}",
        "test loss": f"{loss:.4f}",
        "test images": f"{len(predictions.labels):,}",
        "epochs": f"{rows[-1].epoch} of {config.epochs}",
        "steps": f"{runs.steps_done(setup.train_state):,}",
        "parameters": str(layers.rows[-1][3]),
        "duration": _duration(sum({row.epoch: row.seconds for row in rows}.values())),
    }
    tables = {"layers": layers}
    if isinstance(config, runs.SweepConfig):
        tables = {"accuracy by learning rate": _rates(config, rows)} | tables
    else:
        tables = {"comparison with published results": _comparison(config, rows)} | tables
    tables["configuration"] = _values(asdict(config))
    tables["environment"] = _values(setup.directory.read_environment())
    return RunReport(
        f"{label}: {config.network}",
        figures,
        tables,
        predictions.confusion,
        predictions.names,
        predictions.worst(MISTAKES),
        {"comparison with published results": _differences(setup)},
    )


def _rows(setup: "Setup") -> "Sequence[Any]":
    """Return the rows of a run's metrics, of members for a sweep."""
    from funcnets.runs import EpochRow, MemberRow, SweepConfig

    if isinstance(setup.config, SweepConfig):
        return setup.directory.read_rows(MemberRow)
    return setup.directory.read_rows(EpochRow)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _values(values: "Mapping[str, Any]") -> "Table":
    """Return the table of a configuration or an environment."""
    from funcnets.plots.html_page import Table

    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return ", ".join(map(str, value)) or "none"
        return "none" if value in (None, "") else str(value)

    rows = [(name.replace("_", " "), shown(value)) for name, value in values.items()]
    return Table(("name", "value"), rows, text_columns=2)


def _layers(setup: "Setup") -> "Table":
    """Return the table of the layers: shape, parameters and multiply-adds for one image."""
    from funcnets import summary
    from funcnets.plots.html_page import Table

    config = setup.config
    shape = (1, config.channels, config.side, config.side)
    rows = [
        (
            "  " * row.name.count(".") + row.name.split(".")[-1] if row.name else "total",
            row.kind if row.name else "",
            " x ".join(map(str, row.shape[1:])),
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
        )
        for row in summary.summarize(setup.net, shape)
    ]
    columns = ("part", "kind", "output", "parameters", "multiply-adds an image")
    return Table(columns, rows, text_columns=3)


def _rates(config: "SweepConfig", rows: "Sequence[MemberRow]") -> "Table":
    """Return the table of a sweep's test accuracy by learning rate."""
    import statistics

    from funcnets.cli import run_results
    from funcnets.plots.html_page import Table

    seeds, ensembles = run_results.accuracies_by_rate(config, rows)
    lines = []
    for rate, values in seeds.items():
        known = [value for value in values if value is not None]
        measured = (statistics.median(known), min(known), max(known)) if known else (None,) * 3
        shown = [_number(value) for value in (*measured, ensembles.get(rate))]
        lines.append((f"{rate:g}", *shown, len(values) - len(known)))
    columns = ("learning rate", "median", "lowest", "highest", "ensemble", "diverged")
    return Table(columns, lines)


def _comparison(config: "Config", measured: "Sequence[EpochRow]") -> "Table":
    """Return the table that compares a training with the published results of its network."""
    from funcnets.plots.html_page import Table
    from funcnets.runs import best_row
    from funcnets.runs.published import PUBLISHED, Published

    last = measured[-1]
    tested = best_row(measured) if config.validation else last
    published = PUBLISHED.get(config.network)
    rows = []
    for field in Published._fields:
        own = getattr(tested if field.startswith("test") else last, field)
        usual = published and getattr(published, field)
        is_rate = field == "examples_per_second"
        digits = ",.0f" if is_rate else ".4f"
        change = own - usual if own is not None and usual is not None and not is_rate else None
        name = "images a second" if is_rate else field.replace("_", " ")
        shown = (_number(own, digits), _number(usual, digits), _number(change, "+.4f"))
        rows.append((name, *shown))
    columns = ("last epoch", "this run", "published", "difference")
    if published is None:
        return Table(columns[:2], [row[:2] for row in rows])
    return Table(columns, rows)


def _number(value: float | None, digits: str = ".4f") -> str:
    return "" if value is None else format(value, digits)


def _differences(setup: "Setup") -> list[str]:
    """Return lines that say in what a training differs from the published one."""
    from funcnets import models
    from funcnets.runs.published import PUBLISHED, PUBLISHED_IMAGES

    config = setup.config
    if config.network not in PUBLISHED:
        return [f"No results of {config.network} are published with this recipe."]
    _, recipe = models.get(config.network, "reference")
    images = len(setup.dataset.train_labels)
    pairs = {
        "learning rate": (config.learning_rate, recipe.learning_rate),
        "schedule": (config.schedule, recipe.schedule),
        "batch size": (config.batch_size, recipe.batch_size),
        "side": (config.side, recipe.side),
        "epochs": (config.epochs, recipe.epochs),
        "training images": (images, PUBLISHED_IMAGES),
        "data": (config.dataset, "fashion-mnist"),
    }
    changed = [
        f"{name} {own} (published {usual})" for name, (own, usual) in pairs.items() if own != usual
    ]
    source = 'Published: Zhang et al., "Dive into deep learning", chapter 8; on a GPU.'
    return [source, f"This run differs in: {', '.join(changed)}." if changed else "Same recipe."]
