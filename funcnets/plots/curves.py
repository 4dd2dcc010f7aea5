"""Curves of one or many trainings by epoch, and the accuracy of a sweep by learning rate."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from funcnets.plots.style import COLORS, GREY, MARKERS, color, new_figure, tidy
from funcnets.plots.texts import plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Sequence[float | None]
LABEL_LENGTH = 36
COLUMNS = 3  # of a legend
RATES_ALIKE = 10  # highest rates that differ by this factor are drawn on a logarithmic scale


@dataclass(frozen=True)
class Curve:
    """Measurements of a training by epoch; None where something wasn't measured or isn't finite.

    Attributes:
        label: name of the training.
        epochs: numbers of the epochs, from 1.
        train_loss, train_accuracy: averages over the epoch.
        loss, accuracy: those of the images that are watched.
        watched: name of these images, such as `test`.
        rates: pairs (epochs done, learning rate).
        spread: the lowest and the highest accuracy in each epoch, of a curve that is a median.
    """

    label: str
    epochs: Sequence[int]
    train_loss: Values
    train_accuracy: Values
    loss: Values
    accuracy: Values
    watched: str = "test"
    rates: Sequence[tuple[float, float]] = ()
    spread: tuple[Sequence[float], Sequence[float]] | None = None


def draw_curves(curves: Sequence[Curve]) -> "Figure":
    """Return a figure of loss, accuracy and learning rate by epoch.

    A colour is a training; its line is dashed for the images that it is trained on, and its marker
    is hollow where it has a single epoch.
    """
    extra = 0.24 * math.ceil((len(curves) + 3) / COLUMNS)
    figure = new_figure(11, 3.5 + extra)
    losses, accuracies, rates = figure.subplots(1, 3)
    for index, curve in enumerate(curves):
        for axes, train, watched in (
            (losses, curve.train_loss, curve.loss),
            (accuracies, curve.train_accuracy, curve.accuracy),
        ):
            _draw_line(axes, curve, train, index, is_train=True)
            _draw_line(axes, curve, watched, index)
        if curve.spread is not None:
            accuracies.fill_between(
                curve.epochs, *curve.spread, color=color(index), alpha=0.18, linewidth=0
            )
        if curve.rates:
            rates.plot(*zip(*curve.rates, strict=True), color=color(index), linewidth=1.8)
    for axes, title in ((losses, "loss"), (accuracies, "accuracy"), (rates, "learning rate")):
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy(axes, grid="y")
    if max(epoch for curve in curves for epoch in curve.epochs) == 1:
        for axes in (losses, accuracies):
            axes.set_xlim(0.5, 1.5)
            axes.set_xticks([1])
        rates.set_xticks([0, 1])
    if lowest := lowest_rate(curves):
        rates.set_yscale("log")
        rates.set_ylim(bottom=lowest)
    else:
        rates.set_ylim(bottom=0)
    _add_legend(figure, curves)
    return figure


def lowest_rate(curves: Sequence[Curve]) -> float | None:
    """Return the end of a logarithmic scale on which each learning rate is seen; None for alike.

    On a scale from zero one rate can't be seen beside another of ten times its size.
    """
    highest = [max(rate for _, rate in curve.rates) for curve in curves if curve.rates]
    if not highest or not 0 < RATES_ALIKE * min(highest) <= max(highest):
        return None
    return min(highest) / RATES_ALIKE


def _draw_line(
    axes: "Axes", curve: Curve, values: Values, index: int, *, is_train: bool = False
) -> None:
    numbers = [math.nan if value is None else value for value in values]
    if all(map(math.isnan, numbers)):
        return
    axes.plot(
        curve.epochs,
        numbers,
        label=shortened(curve.label, LABEL_LENGTH),
        color=color(index),
        linestyle=(0, (4, 2)) if is_train else "-",
        linewidth=1.3 if is_train else 2,
        marker="" if is_train and len(numbers) > 1 else MARKERS[index % len(MARKERS)],
        markerfacecolor="none" if is_train else None,
        markersize=4,
    )


def _add_legend(figure: "Figure", curves: Sequence[Curve]) -> None:
    """Add the names of the trainings below, and the meaning of the kinds of lines."""
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shade = COLORS[0] if len(curves) == 1 else GREY
    watched = " or ".join(dict.fromkeys(curve.watched for curve in curves))
    is_single = all(len(curve.epochs) == 1 for curve in curves)
    how: dict[str, Any] = {"color": shade, "marker": "o" if is_single else "", "markersize": 4}
    dashed: dict[str, Any] = {"linestyle": "" if is_single else (0, (4, 2)), "linewidth": 1.3}
    lines: list[Artist] = [
        Line2D([], [], linewidth=0 if is_single else 2, label=f"{watched} images", **how),
        Line2D([], [], markerfacecolor="none", label="training images", **dashed, **how),
    ]
    if any(curve.spread is not None for curve in curves):
        lines.append(Patch(color=shade, alpha=0.18, linewidth=0, label="lowest to highest seed"))
    names: list[Artist] = [
        Line2D(
            [],
            [],
            color=color(index),
            linewidth=2,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            label=shortened(curve.label, LABEL_LENGTH),
        )
        for index, curve in enumerate(curves)
    ]
    if len(curves) == 1:
        figure.suptitle(plain(curves[0].label), x=0.01, ha="left", fontsize=11)
        names = []
    figure.legend(
        handles=[*names, *lines], loc="outside lower left", ncols=COLUMNS, frameon=False, fontsize=9
    )


def draw_sweep(
    accuracies: Mapping[float, Values], ensembles: Mapping[float, float] | None = None
) -> "Figure":
    """Return a figure of the test accuracy by learning rate: each seed, their median and spread.

    Args:
        accuracies: for each learning rate the accuracy of each seed; None for one that diverged.
        ensembles: for each learning rate the accuracy of the ensemble of its seeds.
    """
    figure = new_figure(max(7.5, 0.75 * len(accuracies)), 4.6)
    axes = figure.subplots()
    axes.use_sticky_edges = False
    tidy(axes, grid="y")
    for place, (rate, values) in enumerate(accuracies.items()):
        _draw_rate(axes, place, values, (ensembles or {}).get(rate))
    names = [_described(rate, values) for rate, values in accuracies.items()]
    axes.set_xticks(range(len(accuracies)), names)
    axes.set_xlim(-0.6, len(accuracies) - 0.4)
    axes.set_xlabel("learning rate, and below it the median")
    axes.set_title("test accuracy by learning rate", loc="left", fontweight="bold")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside lower left", ncols=4, frameon=False)
    return figure


def draw_rates(losses: Mapping[float, float | None], first_loss: float) -> "Figure":
    """Return a figure of the loss after some steps by learning rate, on a logarithmic axis.

    Losses above that of the first step are cut there, as rates that are too high have huge ones.

    Args:
        losses: the loss by learning rate; None where it isn't finite.
        first_loss: the loss of the first step, the same for all rates.
    """
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    tidy(axes, grid="y")
    shown = {rate: loss for rate, loss in losses.items() if loss is not None and loss <= first_loss}
    higher = [rate for rate in losses if rate not in shown]
    axes.axhline(first_loss, color=GREY, linewidth=1.3, linestyle=(0, (4, 2)), label="first step")
    axes.plot(list(shown), list(shown.values()), color=COLORS[0], linewidth=2, marker="o")
    if higher:
        how: dict[str, Any] = {"marker": "x", "s": 42, "color": COLORS[1], "zorder": 3}
        axes.scatter(higher, [first_loss] * len(higher), label="higher, or diverged", **how)
    if shown:
        best = min(shown, key=lambda rate: shown[rate])
        how = {"marker": "D", "s": 60, "color": COLORS[2], "zorder": 4}
        axes.scatter(best, shown[best], label=f"lowest, at {best:g}", **how)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_title("loss by learning rate", loc="left", fontweight="bold")
    figure.legend(loc="outside lower left", ncols=3, frameon=False)
    return figure


def _draw_rate(axes: "Axes", place: int, values: Values, ensemble: float | None) -> None:
    known = [value for value in values if value is not None]
    if known:
        middle = statistics.median(known)
        if len(known) > 1:
            height = max(known) - min(known)
            axes.bar(
                place, height, 0.5, bottom=min(known), color="#cfe2f1", label="spread of seeds"
            )
        step = 0.3 / max(1, len(known) - 1)
        offsets = [place + step * (i - (len(known) - 1) / 2) for i in range(len(known))]
        axes.scatter(offsets, known, s=26, color=COLORS[0], zorder=3, label="one seed")
        axes.hlines(
            middle, place - 0.25, place + 0.25, color="black", linewidth=2, zorder=4, label="median"
        )
    if ensemble is not None and known:
        axes.scatter(
            place + 0.33, ensemble, marker="D", s=42, color=COLORS[1], zorder=4, label="ensemble"
        )


def _described(rate: float, values: Values) -> str:
    """Return a rate, and below it the median of its seeds and how many of them diverged."""
    known = [value for value in values if value is not None]
    lines = [f"{rate:g}", f"{statistics.median(known):.3f}" if known else "none"]
    if len(known) < len(values):
        lines += [f"{len(values) - len(known)} of {len(values)}", "diverged"]
    return "\n".join(lines)
