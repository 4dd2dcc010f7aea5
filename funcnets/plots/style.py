"""Common form of all pictures: colours, grids of images, and files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from funcnets import _extras
from funcnets.plots import texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color universal design", 2008: told apart by the colour-blind too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX<"  # one more than colours, so that their pairs differ
GREY = "#767676"
PIXELS_PER_INCH = 150


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches.

    Raises MissingExtraError without matplotlib.
    """
    module = _extras.require("matplotlib.figure", "plots", "drawing")
    figure: Figure = module.Figure((width, height), layout="constrained")
    return figure


def save(figure: "Figure", path: Path) -> str:
    """Write a figure to a file, as PNG or SVG by its suffix; the same figure, the same bytes.

    A character that its font lacks is drawn in an installed one that has it.  Return the characters
    that none has: in the figure they are replaced by escapes.
    """
    missing = texts.fit_fonts(figure)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=PIXELS_PER_INCH, metadata=metadata, facecolor="white")
    return missing


def tidy(axes: "Axes", *, grid: str | None = None) -> None:
    """Remove the upper and the right line of the frame, and draw a faint grid along an axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, color="#e4e4e4", linewidth=0.8)  # type: ignore[arg-type]


def color(index: int) -> str:
    """Return the colour of a line, by its number."""
    return COLORS[index % len(COLORS)]


def show_image(axes: "Axes", image: Tensor, **options: Any) -> Any:
    """Draw an image (C, H, W), grey for one channel and in colour for three; without axes."""
    axes.set_axis_off()
    pixels = image[0] if image.shape[0] != 3 else image.permute(1, 2, 0)
    if image.shape[0] != 3:
        options.setdefault("cmap", "gray")
    return axes.imshow(pixels.cpu().numpy(), interpolation="nearest", **options)
