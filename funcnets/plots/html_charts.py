"""Charts of a page: SVG of lines by epoch, and the values to show under the pointer."""

import bisect
import html
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from funcnets.plots.curves import Curve, lowest_rate

WIDTH, HEIGHT = 440, 260  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34
COLORS = 7  # classes c0, c1, ... of the style sheet
TICKS = 5
MOST_DOTS = 20  # on a line
MOST_LINES_OVER = 4  # of which the values are shown over the chart, not below it


class Line(NamedTuple):
    """A line of a chart; a value is None where there is none."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: int
    is_dashed: bool = False


def charts(curves: Sequence[Curve]) -> str:
    """Return the charts of loss, accuracy and learning rate of trainings, and their legend."""
    several = len(curves) > 1
    losses: list[Line] = []
    accuracies: list[Line] = []
    rates: list[Line] = []
    for index, curve in enumerate(curves):
        before = f"{curve.label}, " if several else ""
        for lines, train, watched in (
            (losses, curve.train_loss, curve.loss),
            (accuracies, curve.train_accuracy, curve.accuracy),
        ):
            lines.append(Line(f"{before}training", curve.epochs, train, index, is_dashed=True))
            lines.append(Line(f"{before}{curve.watched}", curve.epochs, watched, index))
        x, y = zip(*curve.rates, strict=True) if curve.rates else ((), ())
        rates.append(Line(curve.label if several else "rate", x, y, index))
    drawn = [
        chart("loss", losses),
        chart("accuracy", accuracies),
        chart("learning rate", rates, is_from_zero=True, log_from=lowest_rate(curves)),
    ]
    return f'<div class="charts">{"".join(drawn)}</div>{_legend(curves)}'


def _legend(curves: Sequence[Curve]) -> str:
    watched = " or ".join(dict.fromkeys(curve.watched for curve in curves))
    items = [
        f'<li><span class="swatch c{index % COLORS}"></span>{html.escape(curve.label)}</li>'
        for index, curve in enumerate(curves)
    ]
    is_single = all(len(curve.epochs) == 1 for curve in curves)
    looks = ("filled", "hollow") if is_single else ("solid", "dashed")
    kinds = [f"{looks[0]}: {watched} images", f"{looks[1]}: training images"]
    items += [f"<li>{html.escape(kind)}</li>" for kind in kinds]
    return f'<ul class="legend">{"".join(items)}</ul>'


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    is_from_zero: bool = False,
    log_from: float | None = None,
) -> str:
    """Return the figure of some lines; nothing if there are no values.

    With `log_from` the scale is logarithmic, and ends there: what is below lies on its end.
    """
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if is_number(y)]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points if y is not None]
    last = math.ceil(max(xs) - 1e-6)
    across = _scale(min(xs), last, LEFT, WIDTH - RIGHT)
    if log_from is None:
        y_ticks = nice_ticks(0.0 if is_from_zero else min(ys), max(ys))
        up = _scale(y_ticks[0], max(y_ticks[-1], max(ys)), HEIGHT - BOTTOM, TOP)
    else:
        low, high = math.log10(log_from), math.log10(max(ys))
        y_ticks = [10.0**n for n in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
        linear = _scale(low, high, HEIGHT - BOTTOM, TOP)
        up = lambda y: linear(math.log10(max(y, log_from)))  # noqa: E731
    whole = [t for t in nice_ticks(min(xs), last) if min(xs) <= t <= last and t == int(t)]
    parts = [_horizontal(up(tick), f"{tick:g}") for tick in y_ticks if up(tick) >= TOP - 1]
    parts += [_text(across(tick), HEIGHT - 16, f"{tick:g}", "middle") for tick in whole]
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 2, "epoch", "middle")]
    parts += [_path(line, across, up) for line in lines]
    parts += [f'<line class="pointer" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>']
    values = html.escape(json.dumps(_values(lines, across)), quote=True)
    name = html.escape(title)
    many = " many" if len(lines) > MOST_LINES_OVER else ""
    return (
        f'<figure class="chart{many}" data-values="{values}"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{name} by epoch">'
        f'{"".join(parts)}</svg><output class="tip" hidden></output></figure>'
    )


def is_number(value: float | None) -> bool:
    """True for a finite number."""
    return value is not None and math.isfinite(value)


def nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers at equal distances, from `low` or below it to `high` or just below.

    >>> from funcnets.plots.html_charts import nice_ticks
    >>> nice_ticks(0.41, 0.83)
    [0.4, 0.5, 0.6, 0.7, 0.8]
    """
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= TICKS)
    first = math.floor(low / step)
    count = max(1, math.floor(high / step + 1e-9) - first)
    return [round((first + i) * step, 12) for i in range(count + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low
    if not span:
        return lambda value: (start + end) / 2
    return lambda value: round(start + (value - low) / span * (end - start), 2)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _horizontal(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
    return line + _text(LEFT - 8, y + 4, label, "end")


def _path(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    """Return the line, which is broken where a value isn't known, and dots if it has few points.

    The dot of a dashed line, which has one if it has a single point, is hollow.
    """
    dashed = " dashed" if line.is_dashed else ""
    color = f"c{line.color % COLORS}"
    places = [
        (across(x), up(y)) if y is not None and is_number(y) else None
        for x, y in zip(line.x, line.y, strict=True)
    ]
    course, before = "", None
    for place in places:
        if place is not None:
            course += f"{'L' if before else 'M'}{place[0]} {place[1]}"
        before = place
    is_dotted = len(places) <= (1 if line.is_dashed else MOST_DOTS)
    kind = f"line {color}" if line.is_dashed else color
    dots = [
        f'<circle class="{kind}" cx="{place[0]}" cy="{place[1]}" r="{4 if line.is_dashed else 3}"/>'
        for place in places
        if place is not None and is_dotted
    ]
    return f'<path class="line {color}{dashed}" d="{course}"/>{"".join(dots)}'


def _values(lines: Sequence[Line], across: Callable[[float], float]) -> dict[str, object]:
    """Return what the page shows under the pointer: at each epoch the value of each line."""
    places = sorted({x for line in lines for x in line.x})
    at = [[_value_at(line, x) for line in lines if line.x and x <= line.x[-1]] for x in places]
    return {
        "width": WIDTH,
        "places": [across(x) for x in places],
        "titles": [f"epoch {x:.4g}" for x in places],
        "values": at,
    }


def _value_at(line: Line, x: float) -> tuple[str, int, str]:
    """Return name, colour and value of a line at the last of its points up to `x`."""
    y = line.y[max(0, bisect.bisect_right(line.x, x) - 1)]
    shown = f"{y:.4g}" if y is not None and is_number(y) else "not known"
    return line.name, line.color % COLORS, shown
