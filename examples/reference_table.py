"""Print a Markdown table of runs that differ in seeds, with the published results beside them.

    python examples/reference_table.py runs/*

Medians of the last epochs, and the range of test accuracy.  A seed that diverged or was stopped is
in a row with fewer epochs.  "Article" has the book's figures (ten epochs, reference recipe, full
set), "others" the range of other people's runs of its notebooks.
"""

import statistics

import arguments

from funcnets import runs
from funcnets.runs.published import NOTEBOOKS, PUBLISHED

HEAD = "network|recipe|precision|epochs|seeds|loss|train|test|range|article: loss|train|test|others"
UNCOMPARED = (*runs.FACTS, "seed", "epochs", "backend", "data", "dataset")
Run = tuple[runs.Config, runs.EpochRow]


def read(path: str) -> Run:
    """Return the configuration of a run, and its last epoch that is tested."""
    config = runs.RunDirectory(path).read_config()
    if isinstance(config, runs.SweepConfig):
        raise runs.RunError(f"{path}: a sweep; expected runs of `funcnets train`")
    rows = [row for row in runs.RunDirectory(path).read_rows() if row.test_accuracy is not None]
    if not rows:
        raise runs.RunError(f"{path}: no epoch is tested yet; go on with it by --resume")
    return config, rows[-1]


def shared_cells(config: runs.Config, row: runs.EpochRow) -> tuple[str, ...]:
    """Return the cells that the seeds share; the recipe is named with the values that differ."""
    usual = runs.Config.from_recipe(config.network, config.recipe, precision=config.precision).fixed
    own = {name: value for name, value in config.fixed.items() if name not in UNCOMPARED}
    changed = [f"{name} {value}" for name, value in own.items() if value != usual.get(name)]
    done = f"{row.epoch}" if row.epoch == config.epochs else f"{row.epoch} of {config.epochs}"
    return config.network, ", ".join([config.recipe, *changed]), config.precision, done


def line(shared: tuple[str, ...], same: list[Run]) -> str:
    """Return a row of the table; cells are empty where nothing is published."""
    test = [row.test_accuracy or 0.0 for _, row in same]
    columns = [row.train_loss for _, row in same], [row.train_accuracy for _, row in same], test
    cells = [*shared, " ".join(str(config.seed) for config, _ in same)]
    cells += [f"{statistics.median(each):.3f}" for each in columns]
    cells += [f"{min(test):.3f} to {max(test):.3f}"]
    cells += [f"{each:.3f}" for each in PUBLISHED.get(shared[0], ())[:3]] or [""] * 3
    cells += ["{:.3f} to {:.3f}".format(*NOTEBOOKS[shared[0]]) if shared[0] in NOTEBOOKS else ""]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    parser, rows = arguments.Parser(__doc__), dict[tuple[str, ...], list[Run]]()
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    try:
        for run in map(read, dict.fromkeys(parser.parse(argv).runs)):
            rows.setdefault(shared_cells(*run), []).append(run)
    except ValueError as error:
        parser.error(str(error))
    print(f"| {HEAD.replace('|', ' | ')} |\n|{'---|' * (HEAD.count('|') + 1)}")
    print("\n".join(line(*row) for row in rows.items()))


if __name__ == "__main__":
    main()
