"""Print a Markdown table of runs that differ in seeds, with the published results beside them.

    python examples/reference_table.py runs

A directory that isn't a run stands for all runs in it, those of `funcnets train` and those of
`learning_curves.py --runs`, which has trained modules too.  Medians of the last epochs, and the
range of test accuracy.  A seed that diverged or was stopped is in a row with fewer epochs.
"Article" has the book's figures (ten epochs, reference recipe, full set), "others" the range of
other people's runs of its notebooks.  Below the table stand the runs that have no row, and the
networks that lack one of ten epochs by the reference recipe.
"""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import arguments

from funcnets import runs
from funcnets.runs.published import NOTEBOOKS, PUBLISHED

HEAD = (
    "network|trained by|recipe|precision|epochs|seeds|loss|train|test|range|"
    "article: loss|train|test|others"
)
UNCOMPARED = (*runs.FACTS, "seed", "epochs", "backend", "data", "dataset")
WAYS = ("function", "module")
EPOCHS = 10  # of the article


class Run(NamedTuple):
    """The configuration of a run, what was trained (`function` or `module`), and its last epoch."""

    config: runs.Config
    way: str
    row: runs.EpochRow

    @property
    def is_published_training(self) -> bool:
        """True for a whole training as the article's, on all images."""
        cells = shared_cells(self)
        return (cells[2], cells[4]) == ("reference", str(EPOCHS))


def read(path: Path) -> Run:
    """Return a run with its last epoch that is tested.  Raises RunError if it has none."""
    directory = runs.RunDirectory(path)
    config = directory.read_config()
    if isinstance(config, runs.SweepConfig):
        raise runs.RunError(f"{path}: a sweep; expected runs of `funcnets train`")
    rows = [row for row in directory.read_rows() if row.test_accuracy is not None]
    if not rows:
        raise runs.RunError(f"{path}: no epoch is tested yet; go on with it by --resume")
    return Run(config, directory.read_environment().get("trained_by", "function"), rows[-1])


def read_all(paths: Iterable[str]) -> tuple[list[Run], list[str]]:
    """Return the runs, and why other runs in directories of runs have no row.

    Raises RunError for a path that is neither a run with a row nor a directory of runs.
    """
    found, left_out = [], []
    for path in dict.fromkeys(map(Path, paths)):
        inside = [] if runs.RunDirectory(path).exists else sorted(path.glob("*/config.json"))
        if not inside:
            found.append(read(path))
        for config in inside:
            try:
                found.append(read(config.parent))
            except runs.RunError as error:
                left_out.append(f"{error}")
    return found, left_out


def shared_cells(run: Run) -> tuple[str, ...]:
    """Return the cells that the seeds share; the recipe is named with the values that differ."""
    config, way, row = run
    usual = runs.Config.from_recipe(config.network, config.recipe, precision=config.precision).fixed
    own = {name: value for name, value in config.fixed.items() if name not in UNCOMPARED}
    changed = [f"{name} {value}" for name, value in own.items() if value != usual.get(name)]
    changed += ["bundled images"] if config.data == "bundled" else []
    done = f"{row.epoch}" if row.epoch == config.epochs else f"{row.epoch} of {config.epochs}"
    return config.network, way, ", ".join([config.recipe, *changed]), config.precision, done


def line(shared: tuple[str, ...], same: list[Run]) -> str:
    """Return a row of the table; cells are empty where nothing is published."""
    test = [run.row.test_accuracy or 0.0 for run in same]
    columns = [run.row.train_loss for run in same], [run.row.train_accuracy for run in same], test
    cells = [*shared, " ".join(str(run.config.seed) for run in same)]
    cells += [f"{statistics.median(each):.3f}" for each in columns]
    cells += [f"{min(test):.3f} to {max(test):.3f}"]
    cells += [f"{each:.3f}" for each in PUBLISHED.get(shared[0], ())[:3]] or [""] * 3
    cells += ["{:.3f} to {:.3f}".format(*NOTEBOOKS[shared[0]]) if shared[0] in NOTEBOOKS else ""]
    return f"| {' | '.join(cells)} |"


def missing(found: list[Run]) -> list[str]:
    """Return a line for each way of training, with the networks that lack a whole training."""
    whole = {(run.way, run.config.network) for run in found if run.is_published_training}
    lacking = {way: [net for net in arguments.NETWORKS if (way, net) not in whole] for way in WAYS}
    return [
        f"No {EPOCHS} epochs by the reference recipe on the full set, {way}: {', '.join(nets)}"
        for way, nets in lacking.items()
        if nets
    ]


def main(argv: list[str] | None = None) -> None:
    parser, rows = arguments.Parser(__doc__), dict[tuple[str, ...], list[Run]]()
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run, or a directory of runs")
    try:
        found, left_out = read_all(parser.parse(argv).runs)
    except ValueError as error:
        parser.error(str(error))
    order = {name: position for position, name in enumerate(arguments.NETWORKS)}
    for run in sorted(found, key=lambda run: (order.get(run.config.network, len(order)), run.way)):
        rows.setdefault(shared_cells(run), []).append(run)
    print(f"| {HEAD.replace('|', ' | ')} |\n|{'---|' * (HEAD.count('|') + 1)}")
    print("\n".join(line(*row) for row in rows.items()))
    for text in (*missing(found), *(f"Left out: {reason}" for reason in left_out)):
        print(f"\n{text}")


if __name__ == "__main__":
    main()
