"""Pictures of a classification: the confusion matrix, and the worst mistakes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from funcnets.plots.style import GREY, new_figure, show_image
from funcnets.plots.texts import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES_WITH_NUMBERS = 26
NAME_LENGTH = 16
POINTS_PER_INCH = 72


class Mistake(NamedTuple):
    """An image that was classified wrongly."""

    image: Tensor  # uint8 (C, H, W)
    true: str
    predicted: str
    probability: float  # that of the predicted class
    number: int  # of the image among the test images


def draw_confusion(counts: Tensor, names: Sequence[str]) -> "Figure":
    """Return a figure of the confusion matrix, with the accuracy of each class on the right.

    Args:
        counts: number of images (K, K) by true class, the row, and by predicted class.
        names: name of each class.

    Raises ValueError if the counts and the names are of different numbers of classes.
    """
    classes = len(names)
    if tuple(counts.shape) != (classes, classes):
        raise ValueError(
            f"counts have shape {tuple(counts.shape)}, expected {(classes, classes)}, as there are "
            f"{classes} names"
        )
    counts = counts.cpu().double()
    totals = counts.sum(1)
    shares = counts / totals.clamp(min=1)[:, None]
    side = min(16.0, 3.2 + 0.52 * classes)
    figure = new_figure(side + 0.6, side)
    figure.set_layout_engine("compressed")  # room for long names beside few classes, too
    axes = figure.subplots()
    # The root shows confusions of one in a hundred beside a diagonal of one.
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1.1)
    size = min(9.0, 0.75 * POINTS_PER_INCH * (side - 3.2) / classes)
    is_wide = classes <= MOST_CLASSES_WITH_NUMBERS
    slanted = {"rotation": 45, "ha": "right"} if is_wide else {"rotation": 90}
    shown = [shortened(name, NAME_LENGTH) for name in names]
    axes.set_xticks(range(classes), shown, **slanted, fontsize=size)
    axes.set_yticks(range(classes), shown, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if is_wide:
        for row, column in counts.nonzero().tolist():
            ink = "white" if shares[row, column] > 0.4 else "black"
            number = f"{int(counts[row, column])}"
            axes.text(column, row, number, ha="center", va="center", color=ink, fontsize=size)
    right = axes.secondary_yaxis("right")
    of_class = [f"{share:.0%}" if n else "" for share, n in zip(shares.diag(), totals, strict=True)]
    right.set_yticks(range(classes), of_class, fontsize=size)
    right.set_ylabel("classified correctly")
    accuracy = float(counts.trace() / counts.sum().clamp(min=1))
    title = f"{accuracy:.1%} of {int(counts.sum()):,} images are classified correctly"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for each in (axes, right):
        each.tick_params(length=0)
        each.spines[:].set_color("#cccccc")
    return figure


def draw_mistakes(mistakes: Sequence[Mistake], columns: int = 6) -> "Figure":
    """Return a figure of wrongly classified images, in the order given, in rows of `columns`."""
    if not mistakes:
        figure = new_figure(4, 1.5)
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        return figure
    columns = min(columns, max(3, len(mistakes)))
    rows = -(-len(mistakes) // columns)
    figure = new_figure(1.75 * columns, 2.15 * rows + 0.4)
    figure.suptitle(
        "worst mistakes, each with the number of its image",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    every = figure.subplots(rows, columns, squeeze=False)
    for axes in every.flat:
        axes.set_axis_off()
    for axes, mistake in zip(every.flat, mistakes, strict=False):
        image = mistake.image if mistake.image.dtype == torch.uint8 else mistake.image.byte()
        show_image(axes, image, vmin=0, vmax=255)
        axes.set_title(
            f"says {shortened(mistake.predicted, NAME_LENGTH)} {mistake.probability:.0%}\n"
            f"is {shortened(mistake.true, NAME_LENGTH)}",
            fontsize=8,
        )
        axes.text(
            0.5,
            -0.02,
            f"#{mistake.number}",
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=7,
            color=GREY,
        )
    return figure
