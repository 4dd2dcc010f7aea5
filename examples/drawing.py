"""Pictures of the examples, drawn by matplotlib."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def draw_heat_maps(images: Tensor, heat: Tensor, titles: Sequence[str], path: str) -> None:
    """Draw each image (H, W), and below it the image with its heat map, in [0, 1]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * len(images), 3.1), layout="constrained")
    axes = figure.subplots(2, len(images))
    for column, title in enumerate(titles):
        for axis in axes[:, column]:
            axis.imshow(images[column].numpy(), cmap="gray_r")
            axis.set_axis_off()
        shown = heat[column].numpy()
        axes[1, column].imshow(shown, cmap="autumn_r", alpha=0.8 * shown, vmin=0, vmax=1)
        axes[0, column].set_title(title, fontsize=8)
    about = "predicted class, and which places speak for it: yellow little, red much"
    figure.suptitle(about, fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


def draw_sharpness(found: Mapping[float, Mapping[int, float]], path: str) -> None:
    """Draw the largest eigenvalue by step, and 2 / rate, for each learning rate."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for rate, values in found.items():
        (line,) = axes.plot([*values], [*values.values()], ".-", label=f"rate {rate:g}")
        axes.axhline(2 / rate, color=line.get_color(), linewidth=0.8, linestyle="--")
    axes.set(yscale="log", xlabel="step", title="largest eigenvalue (dashed: 2 / rate)")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")
