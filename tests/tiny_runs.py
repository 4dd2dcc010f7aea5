"""Runs of a tiny network, which take a second: its entry, flags, and what happens to them."""

from funcnets import models
from funcnets.cli import reporters
from funcnets.core import sequential
from funcnets.layers import batch_norm, conv2d, flatten, linear
from funcnets.runs import steps_done

NET = sequential(conv=conv2d(2, 3, stride=2), bn=batch_norm(), flatten=flatten(), fc=linear(10))
ENTRY = models.Entry(lambda: NET, {"tuned": models.Recipe(0.1, 32, side=6)})
TINY = ["tiny", "--limit-train", "96", "--backend", "graph", "--data", "bundled"]
CONFIG = {"network": "tiny", "limit_train": 96, "backend": "graph", "data": "bundled"}


def is_one_line(code, err):
    return (code, err.count("\n"), "Traceback" in err) == (2, 1, False)


def after_step(monkeypatch, step, action):
    """Call `action` when this step is done, in each training until the context ends."""

    def advance(self, progress, examples_per_second):
        if steps_done(progress.train_state) == step:
            action()

    monkeypatch.setattr(reporters.PlainLines, "advance", advance)
