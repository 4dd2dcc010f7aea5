"""Pictures of trainings and networks: pure functions from data to a figure of matplotlib.

Nothing is shown on a screen, and nothing of matplotlib's global state is read or changed.  It is
imported at the first drawing; the extra `plots` installs it.

>>> import torch
>>> from funcnets import plots
>>> figure = plots.draw_confusion(torch.tensor([[8, 2], [1, 9]]), ("cat", "dog"))
>>> figure.axes[0].get_ylabel()
'true class'
"""

from funcnets.plots.classes import Mistake, draw_confusion, draw_mistakes
from funcnets.plots.curves import Curve, draw_curves, draw_rates, draw_sweep
from funcnets.plots.networks import draw_batch_norms, draw_feature_maps, draw_filters
from funcnets.plots.profile import LayerBar, draw_profile
from funcnets.plots.style import save

__all__ = [
    "Curve",
    "LayerBar",
    "Mistake",
    "draw_batch_norms",
    "draw_confusion",
    "draw_curves",
    "draw_feature_maps",
    "draw_filters",
    "draw_mistakes",
    "draw_profile",
    "draw_rates",
    "draw_sweep",
    "save",
]
