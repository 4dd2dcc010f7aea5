"""Picture of a profile: the time of each layer in a training step, as bars."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from funcnets.plots.style import COLORS, GREY, new_figure, tidy
from funcnets.plots.texts import plain, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BARS = 40
NAME_LENGTH = 40
PASSES = {"forward": COLORS[5], "backward": COLORS[0], "neither": GREY}


class LayerBar(NamedTuple):
    """Time of a layer in a step, in ms; both passes are None for what isn't of a layer."""

    name: str
    forward: float | None
    backward: float | None
    total: float


def draw_profile(bars: Sequence[LayerBar], title: str) -> "Figure":
    """Return a figure with a bar for each layer in the order given, divided by the two passes.

    Of more than `MOST_BARS` layers those that take longest are shown, and the rest as one.
    """
    longest = sorted(bars, key=lambda bar: bar.total, reverse=True)[:MOST_BARS]
    shown = [bar for bar in bars if bar in longest]
    if rest := [bar for bar in bars if bar not in longest]:
        total = sum(bar.total for bar in rest)
        shown.append(LayerBar(f"{len(rest)} more", None, None, total))
    figure = new_figure(8, 1.2 + 0.2 * len(shown))
    axes = figure.subplots()
    tidy(axes, grid="x")
    every = sum(bar.total for bar in bars)
    for place, bar in enumerate(shown):
        forward, backward = bar.forward or 0.0, bar.backward or 0.0
        parts = zip(
            PASSES.items(), (forward, backward, bar.total - forward - backward), strict=True
        )
        left = 0.0
        for (name, color), width in parts:
            axes.barh(place, width, 0.75, left=left, color=color, label=name)
            left += width
        share = bar.total / every
        axes.annotate(
            "< 0.1%" if share < 0.0005 else f"{share:.1%}" if share < 0.1 else f"{share:.0%}",
            (bar.total, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    names = [shortened(bar.name, NAME_LENGTH) for bar in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max((bar.total for bar in shown), default=1.0))
    axes.set_xlabel("ms a step")
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside lower left", ncols=3, frameon=False)
    return figure
