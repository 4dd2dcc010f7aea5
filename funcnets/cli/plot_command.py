"""Command that draws pictures of runs: `funcnets plot`."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from funcnets.cli import options, pictures
from funcnets.cli.option_kinds import directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from funcnets.cli.preparation import Setup
    from funcnets.runs import RunDirectory

# Pictures by name; those of the first group need the measurements of a run, the others its
# network and its data too.
OF_MEASUREMENTS = ("curves", "sweep")
OF_NETWORK = ("confusion", "mistakes", "features", "filters", "batch-norm")
MISTAKES = 30

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN", parser=directory, help="Run directories.")
]


def plot_command(
    run: Runs,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"Pictures, with commas between them: {', '.join(OF_MEASUREMENTS + OF_NETWORK)}.",
            show_default="all of one run; of several, curves",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAMES", help="Kinds of files: png, svg or both.")
    ] = "png,svg",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=directory,
            help="Directory of the pictures.",
            show_default="RUN/plots; plots for several runs",
        ),
    ] = None,
    image: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of the test image for features.")
    ] = 0,
    dataset: options.DataSet = None,
    data: options.Data = None,
    device: options.Device = None,
) -> None:
    """Draw the curves of runs, confusion matrix, mistakes, filters, feature maps and batch norms.

    A sweep's picture is its accuracy by learning rate.  The colours suit colour-blind readers
    too.  Needs matplotlib: pip install 'funcnets\\[plots]'.
    """
    usual = OF_MEASUREMENTS + OF_NETWORK if len(run) == 1 else ("curves",)
    kinds = _chosen("--kind", kind, OF_MEASUREMENTS + OF_NETWORK) or usual
    formats = _chosen("--format", format, pictures.FORMATS)
    from funcnets import plots
    from funcnets.runs import RunDirectory

    pictures.require()
    directories = [RunDirectory(path) for path in run]
    target = out or (run[0] / "plots" if len(run) == 1 else Path("plots"))
    given = {"dataset": dataset, "data": data, "device": device}
    fields = options.fields(options.EVAL_FIELDS, given)
    missing: set[str] = set()
    for name, figure in _figures(directories, kinds, image, fields, is_asked=kind is not None):
        target.mkdir(parents=True, exist_ok=True)
        for suffix in formats:
            path = target / f"{name}.{suffix}"
            missing |= set(plots.save(figure, path))
            print(path)
    pictures.warn_of_missing(missing)


def _chosen(option: str, given: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a list such as `png,svg`.  Raises ValueError for an unknown one."""
    names = tuple(name.strip() for name in given.split(",")) if given else ()
    if given is not None and not set(names) <= set(known):
        raise ValueError(f"{option} is {given!r}; expected names of {', '.join(known)}")
    return names


def _figures(
    directories: "Sequence[RunDirectory]",
    kinds: Sequence[str],
    image: int,
    fields: dict[str, str],
    *,
    is_asked: bool,
) -> "Iterator[tuple[str, Figure]]":
    """Yield name and figure of each picture; that of one run among several has its name."""
    from funcnets import plots
    from funcnets.cli import run_results
    from funcnets.cli.reporters import Reporter

    labels = run_results.names_of([each.path for each in directories])
    if "curves" in kinds:
        curves = [
            curve
            for each, label in zip(directories, labels, strict=True)
            for curve in run_results.curves_of(each, label)
        ]
        yield "curves", plots.draw_curves(curves)
    for each, label in zip(directories, labels, strict=True):
        before = "" if len(directories) == 1 else f"{label.replace('/', '-')}-"
        if "sweep" in kinds and (figure := _sweep(each, is_asked)):
            yield f"{before}sweep", figure
        if wanted := [name for name in OF_NETWORK if name in kinds]:
            setup = run_results.open_run(each.path, fields)
            for name, figure in _of(setup, wanted, image):
                if figure is not None:
                    yield f"{before}{name}", figure
                elif is_asked:
                    Reporter().warn(f"{each.path}: its network has nothing to draw for {name}")


def _sweep(directory: "RunDirectory", is_asked: bool) -> "Figure | None":
    """Return the picture of a sweep; None for another run, if it wasn't asked for by name."""
    from funcnets import plots
    from funcnets.cli import run_results
    from funcnets.runs import MemberRow, RunError, SweepConfig

    config = directory.read_config()
    if isinstance(config, SweepConfig) and (rows := directory.read_rows(MemberRow)):
        return plots.draw_sweep(*run_results.accuracies_by_rate(config, rows))
    if is_asked:
        raise RunError(f"{directory.path}: no sweep with an epoch that is done; leave out sweep")
    return None


def _of(setup: "Setup", kinds: Iterable[str], image: int) -> "Iterator[tuple[str, Figure | None]]":
    """Yield name and figure of each picture of a run's network; None where it has no such part."""
    from funcnets import plots
    from funcnets.cli import run_results

    drawn = {"filters": _filters, "batch-norm": _batch_norms}
    asked = set(kinds)
    if asked & {"confusion", "mistakes"}:
        predictions = run_results.predict(setup)
        if "confusion" in asked:
            yield "confusion", plots.draw_confusion(predictions.confusion, predictions.names)
        if "mistakes" in asked:
            yield "mistakes", plots.draw_mistakes(predictions.worst(MISTAKES))
    if "features" in asked:
        yield "features", _feature_maps(setup, image)
    for name, draw in drawn.items():
        if name in asked:
            yield name, draw(setup)


def _filters(setup: "Setup") -> "Figure | None":
    """Return the picture of the first convolution; None without one."""
    from funcnets import plots, tree
    from funcnets.cli import run_results

    named = tree.flatten_named(run_results.network_values(setup)[0])
    for part in run_results.parts_of(setup):
        weight = named.get(f"{part.name}.weight")
        if weight is not None and weight.ndim == 4:
            return plots.draw_filters(weight, part.name)
    return None


def _batch_norms(setup: "Setup") -> "Figure | None":
    """Return the picture of scale and shift of all batch norms; None without one."""
    from funcnets import plots, tree
    from funcnets.cli import run_results

    named = tree.flatten_named(run_results.network_values(setup)[0])
    paths = [p.name for p in run_results.parts_of(setup) if p.kind.startswith("batch_norm")]
    values = {path: (named[f"{path}.weight"], named[f"{path}.bias"]) for path in paths}
    return plots.draw_batch_norms(values) if values else None


def _feature_maps(setup: "Setup", number: int) -> "Figure":
    """Return the picture of the feature maps of a test image, of the outermost parts."""
    import torch

    from funcnets import plots, transforms
    from funcnets.cli import run_results
    from funcnets.runs import recipe

    images = setup.dataset.test_images
    if number >= len(images):
        raise ValueError(f"--image is {number}; expected 0 to {len(images) - 1}")
    rows = run_results.parts_of(setup)
    outermost = [row for row in rows if "." not in row.name and len(row.shape) == 4]
    paths = [row.name for row in outermost if row.shape[2:] != (1, 1)]
    x = recipe.preparation(setup.config)(images[number][None])
    params, state = run_results.network_values(setup)
    with torch.no_grad():
        captured = transforms.capture(setup.net, params, state, x, paths=paths)
    maps = {path: captured.activations[path][0] for path in paths}
    return plots.draw_feature_maps(x[0].cpu(), maps)
