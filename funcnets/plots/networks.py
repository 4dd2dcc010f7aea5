"""Pictures of a network's values: filters, feature maps, and scale and shift of batch norms."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from funcnets.plots.style import COLORS, new_figure, show_image, tidy
from funcnets.plots.texts import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAPS_PER_LAYER = 8
MOST_FILTERS = 96


def draw_filters(weight: Tensor, path: str) -> "Figure":
    """Return a figure of the filters of a convolution, by output channel.

    Those of one input channel, or of the mean over several, are on a scale from orange (negative)
    to purple (positive); those of three are in colour.

    Args:
        weight: weight (O, I, kh, kw).
        path: name of the convolution.
    """
    shown = weight.detach().float().cpu()[:MOST_FILTERS]
    is_colour = weight.shape[1] == 3
    if not is_colour:
        shown = shown.mean(1, keepdim=True)
    limit = max(float(shown.abs().max()), 1e-12)
    columns = min(12, max(3, math.ceil(math.sqrt(len(shown) * 1.6))))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(max(5.2, 0.85 * columns + 1), 0.85 * rows + 0.9)
    every = figure.subplots(rows, columns, squeeze=False)
    for axes in every.flat:
        axes.set_axis_off()
    picture = None
    for axes, filters in zip(every.flat, shown, strict=False):
        if is_colour:
            show_image(axes, filters / (2 * limit) + 0.5)
        else:
            picture = show_image(axes, filters, cmap="PuOr", vmin=-limit, vmax=limit)
    if picture is not None:
        figure.colorbar(picture, ax=every.ravel().tolist(), shrink=0.9, aspect=25)
    form = " x ".join(map(str, weight.shape[2:]))
    some = f", the first {len(shown)}" if len(shown) < len(weight) else ""
    mean = ", mean over the input channels" if weight.shape[1] not in (1, 3) else ""
    title = f"{plain(path)}: {len(weight)} filters of {form}{some}{mean}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def draw_feature_maps(image: Tensor, activations: Mapping[str, Tensor]) -> "Figure":
    """Return a figure of the feature maps of an image, with a row for each layer.

    Of a layer the maps that vary most over the image are shown, each on its own scale.

    Args:
        image: image (C, H, W) as the network takes it.
        activations: for each layer its output (C, H, W).
    """
    rows = len(activations) + 1
    figure = new_figure(1.02 * MAPS_PER_LAYER + 2.6, 1.02 * rows + 0.4)
    every = figure.subplots(
        rows, MAPS_PER_LAYER + 1, squeeze=False, width_ratios=[2, *[1] * MAPS_PER_LAYER]
    )
    for axes in every.flat:
        axes.set_axis_off()
    span = float(image.max() - image.min()) or 1.0
    show_image(every[0, 1], (image - image.min()) / span)
    every[0, 0].text(1, 0.5, "image", ha="right", va="center", fontweight="bold")
    for line, (path, maps) in zip(every[1:], activations.items(), strict=True):
        values = maps.detach().float().cpu()
        order = values.flatten(1).std(1, correction=0).argsort(descending=True)[:MAPS_PER_LAYER]
        label = f"{plain(path)}\n{values.shape[0]} maps of {values.shape[1]} x {values.shape[2]}"
        line[0].text(1, 0.5, label, ha="right", va="center", fontsize=9)
        for axes, channel in zip(line[1:], sorted(order.tolist()), strict=False):
            show_image(axes, values[channel][None], cmap="viridis")
            axes.set_title(f"{channel}", fontsize=7, pad=2)
    figure.suptitle(
        "feature maps that vary most, each on its own scale; above each the channel",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    return figure


def draw_batch_norms(values: Mapping[str, tuple[Tensor, Tensor]]) -> "Figure":
    """Return a figure of scale and shift of batch norms: a dot for each channel, and the median.

    Args:
        values: for each batch norm its weight and its bias, (C,), in the order of the network.
    """
    figure = new_figure(9.5, 1.5 + 0.3 * max(3, len(values)))
    for axes, part, usual in zip(figure.subplots(1, 2, sharey=True), (0, 1), (1, 0), strict=True):
        for place, pair in enumerate(values.values()):
            numbers = pair[part].detach().double().cpu()
            # Spread up and down by the golden ratio, so that equal values are seen.
            offsets = 0.6 * (torch.arange(len(numbers)) * 0.618034 % 1 - 0.5)
            axes.scatter(numbers, place + offsets, s=9, alpha=0.55, color=COLORS[0], linewidths=0)
            median = float(numbers.median())
            axes.vlines(median, place - 0.34, place + 0.34, color=COLORS[1], linewidth=2.2)
        axes.axvline(usual, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(
            f"{('scale (weight)', 'shift (bias)')[part]}; dotted: initial value",
            loc="left",
            fontsize=10,
        )
        axes.set_yticks(range(len(values)), [plain(path) for path in values], fontsize=9)
        tidy(axes, grid="x")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=6)
    axes.set_ylim(len(values) - 0.4, -0.6)
    figure.supxlabel("a blue dot is a channel, an orange bar the median", fontsize=9)
    return figure
