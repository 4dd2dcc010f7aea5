"""Learning rates that are tried side by side, as the members of an ensemble."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from funcnets import plots, runs, train
from funcnets.cli import configuration, run_data
from funcnets.cli.configuration import UsageError, check_range
from funcnets.cli.fit_check import create_train_state
from funcnets.cli.preparation import ALONE
from funcnets.cli.terminal import sparkline
from funcnets.runs import SweepConfig
from funcnets.transforms import ensemble

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_RATES, MOST_STEPS = 1000, 1_000_000


class RateRow(NamedTuple):
    """The effect of a learning rate on the loss."""

    learning_rate: float
    loss: float | None  # mean of the last quarter of the steps; None where it isn't finite
    is_best: bool


class Found(NamedTuple):
    """The rates that were tried, and on what."""

    config: SweepConfig
    steps: int
    first_loss: float  # of the first step, the same for all rates
    rows: list[RateRow]


def spread(lowest: float, highest: float, count: int) -> tuple[float, ...]:
    """Return `count` rates from the lowest to the highest, evenly in log scale, of two digits.

    Raises UsageError unless 0 < lowest < highest, and there are two or more.

    >>> from funcnets.cli import find_lr
    >>> find_lr.spread(0.001, 1, 4)
    (0.001, 0.01, 0.1, 1.0)
    """
    if not 0 < lowest < highest < math.inf:
        raise UsageError(
            f"--lowest is {lowest:g} and --highest is {highest:g}; expected two rates above 0, the "
            "lowest first"
        )
    check_range("--count", count, 2, MOST_RATES, unit=" rates")
    ratio = (highest / lowest) ** (1 / (count - 1))
    rates = [float(f"{lowest * ratio**index:.2g}") for index in range(count)]
    return tuple(dict.fromkeys(rates))


def try_rates(given: Mapping[str, Any], rates: Sequence[float], steps: int) -> Found:
    """Return the losses of a network after `steps` steps with each of `rates`.

    Raises UsageError or DataError if it can't be trained like this.
    """
    check_range("--steps", steps, 4, MOST_STEPS)
    fields = {"schedule": "constant", **given, "seeds": 1, "rates": tuple(rates)}
    config = configuration.configure({**fields, **run_data.find(given)})
    dataset = run_data.load(config, ALONE, is_new=True)
    config = run_data.described(config, dataset, given)
    assert isinstance(config, SweepConfig)
    dataset = run_data.limited(config, dataset)
    net, optimizer = runs.build(config, steps)
    members = create_train_state(config, net, optimizer, dataset)
    step = ensemble.jit_step(
        runs.make_step(config, net, optimizer), donate_argnums=0, backend=config.backend
    )
    key = train.shuffle_key(ensemble.unstack(members)[0]).clone()
    batches = train.shuffled_batches(
        key,
        (dataset.train_images, dataset.train_labels),
        batch_size=min(config.batch_size, len(dataset.train_labels)),
        epochs=steps,
        drop_last=True,
    )
    losses = []
    for _, batch in itertools.islice(batches, steps):
        members, measured = step(members, batch)
        losses.append(measured["loss"].tolist())
    return Found(config, steps, losses[0][0], _rows(rates, losses[-(steps // 4) :]))


def _rows(rates: Sequence[float], losses: Sequence[Sequence[float]]) -> list[RateRow]:
    means = [sum(each) / len(each) for each in zip(*losses, strict=True)]
    finite = [mean for mean in means if math.isfinite(mean)]
    best = min(finite, default=None)
    return [
        RateRow(rate, mean if math.isfinite(mean) else None, mean == best)
        for rate, mean in zip(rates, means, strict=True)
    ]


def table(found: Found) -> Table:
    """Return the table of the rates."""
    shown = Table()
    shown.add_column("rate", justify="right")
    shown.add_column("loss", justify="right")
    shown.add_column("", justify="left")
    for row in found.rows:
        loss = "diverged" if row.loss is None else f"{row.loss:.3f}"
        shown.add_row(f"{row.learning_rate:g}", loss, "lowest" if row.is_best else "")
    return shown


def course(found: Found) -> str:
    """Return a line whose characters are as high as the losses; x is higher than the first one."""
    losses = [math.inf if row.loss is None else row.loss for row in found.rows]
    marks = sparkline([min(loss, found.first_loss) for loss in losses])
    pairs = zip(marks, losses, strict=True)
    marked = (mark if loss <= found.first_loss else "x" for mark, loss in pairs)
    lowest, highest = found.rows[0].learning_rate, found.rows[-1].learning_rate
    return f"loss by rate: {''.join(marked)}  {lowest:g} to {highest:g}"


def draw(found: Found) -> "Figure":
    """Return the picture of the losses by rate.  Raises MissingExtraError without matplotlib."""
    return plots.draw_rates({row.learning_rate: row.loss for row in found.rows}, found.first_loss)


def suggestion(found: Found) -> list[str]:
    """Return what the table says, and the command that trains with it."""
    best = next((row for row in found.rows if row.is_best), None)
    if best is None or best.loss is None or best.loss >= found.first_loss:
        return ["no rate made the loss smaller: try lower ones by --lowest, or more --steps"]
    lines = [
        f"loss {found.first_loss:.3f} before; mean of the last {found.steps // 4} of "
        f"{found.steps} steps above",
        f"to train with it: funcnets train {found.config.network} --lr {best.learning_rate:g}",
    ]
    if best is found.rows[-1]:
        lines.append("the highest rate is the best: try higher ones by --highest")
    return lines
