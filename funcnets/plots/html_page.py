"""Report of trainings as one HTML page, which holds all that it shows and fetches nothing."""

import base64
import html
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from torch import Tensor

from funcnets.plots.classes import Mistake
from funcnets.plots.curves import Curve
from funcnets.plots.html_charts import charts


@dataclass(frozen=True)
class Table:
    """A table: names of its columns, its rows, and how many columns on the left are text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    text_columns: int = 1


@dataclass(frozen=True)
class RunReport:
    """The contents of a page about a run.

    Attributes:
        name: name of the run.
        figures: the most important numbers, as text, by what they are.
        tables: tables by title, in order, below the confusion matrix and the mistakes.
        notes: lines below the table of a title.
        confusion: number of images (K, K) by true and predicted class.
        classes: name of each class.
        mistakes: images that were classified wrongly, the worst first.
    """

    name: str
    figures: Mapping[str, str]
    tables: Mapping[str, Table]
    confusion: Tensor
    classes: Sequence[str]
    mistakes: Sequence[Mistake] = ()
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)


def render_page(title: str, curves: Sequence[Curve], reports: Sequence[RunReport]) -> str:
    """Return the HTML page of some runs."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    sections = "".join(map(_run, reports))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escaped(title)}</title><style>{style}</style></head>\n<body><main>"
        f"<h1>{_escaped(title)}</h1>{charts(curves)}{sections}</main>\n"
        f"<script>{script}</script></body></html>\n"
    )


def _resource(name: str) -> str:
    return resources.files("funcnets.plots").joinpath(name).read_text(encoding="utf-8")


def _escaped(value: object) -> str:
    return html.escape(str(value))


def _run(report: RunReport) -> str:
    figures = "".join(
        f"<div><dt>{_escaped(name)}</dt><dd>{_escaped(value)}</dd></div>"
        for name, value in report.figures.items()
    )
    tables = "".join(
        _section(title, table_of(table), report.notes.get(title, ()))
        for title, table in report.tables.items()
    )
    confusion = confusion_of(report.confusion, report.classes)
    return (
        f'<section class="run"><h2>{_escaped(report.name)}</h2><dl class="figures">{figures}</dl>'
        f"{_section('confusion matrix', confusion, ['rows: true class; columns: predicted class'])}"
        f"{_section('worst mistakes', mistakes_of(report.mistakes))}{tables}</section>"
    )


def _section(title: str, content: str, notes: Iterable[str] = ()) -> str:
    lines = "".join(f"<p>{_escaped(note)}</p>" for note in notes)
    return (
        f"<details open><summary><h3>{_escaped(title)}</h3></summary>"
        f'<div class="wide">{content}</div>{lines}</details>'
    )


def table_of(table: Table) -> str:
    """Return a table in HTML; a name with leading spaces is indented."""
    head = "".join(f'<th scope="col">{_escaped(column)}</th>' for column in table.columns)
    body = []
    for row in table.rows:
        cells = []
        for index, value in enumerate(row):
            kind = "name" if index < table.text_columns else "number"
            text = _escaped(value)
            indent = len(text) - len(text.lstrip(" "))
            style = f' style="padding-left:{0.6 + 0.6 * indent:.1f}em"' if indent else ""
            cells.append(f'<td class="{kind}"{style}>{text.strip()}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def confusion_of(counts: Tensor, names: Sequence[str]) -> str:
    """Return the confusion matrix in HTML, coloured by the fraction of the true class."""
    columns = "".join(f'<th scope="col"><span>{_escaped(name)}</span></th>' for name in names)
    rows = []
    for name, row in zip(names, counts.tolist(), strict=True):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="--share:{(count / total) ** 0.5:.3f}"'
            f"{' class=strong' if count / total > 0.3 else ''}"
            f' title="{_escaped(name)} taken for {_escaped(other)}: {count} of {sum(row)}">'
            f"{count or ''}</td>"
            for other, count in zip(names, row, strict=True)
        )
        rows.append(f'<tr><th scope="row">{_escaped(name)}</th>{cells}</tr>')
    return (
        f'<table class="confusion"><thead><tr><td></td>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def mistakes_of(mistakes: Sequence[Mistake]) -> str:
    """Return images that were classified wrongly, with what they were taken for."""
    if not mistakes:
        return "<p>none</p>"
    items = [
        f'<figure><img alt="test image {mistake.number}" src="{data_address(mistake.image)}">'
        f"<figcaption>says {_escaped(mistake.predicted)} {mistake.probability:.0%}<br>"
        f"is {_escaped(mistake.true)}<br><small>#{mistake.number}</small></figcaption></figure>"
        for mistake in mistakes
    ]
    return f'<div class="mistakes">{"".join(items)}</div>'


def data_address(image: Tensor) -> str:
    """Return an image, uint8 (C, H, W) with 1 or 3 channels, as the address of a PNG in itself."""
    encoded = base64.b64encode(encode_png(image)).decode("ascii")
    return f"data:image/png;base64,{encoded}"


def encode_png(image: Tensor) -> bytes:
    """Return an image, uint8 (C, H, W), as PNG: in colour for three channels, else the first one.

    Portable Network Graphics specification, third edition, sections 5 and 11.
    """
    pixels = image if image.shape[0] == 3 else image[:1]
    channels, height, width = pixels.shape
    lines: Any = pixels.permute(1, 2, 0).reshape(height, width * channels).cpu().numpy()
    content = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
