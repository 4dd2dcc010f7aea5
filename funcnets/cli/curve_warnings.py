"""Warnings about the curve of a training loss: a spike, or a plateau that is not left."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from funcnets.runs import Config, EpochRow

# Means over fewer steps jump by chance, and are too few to leave the plateau of the beginning.
LEAST_STEPS = 200
# A spike is a rise above the lowest mean loss of an earlier epoch, by this factor and this much.
SPIKE_FACTOR, SPIKE_RISE = 1.25, 0.1
# A mean loss above this part of that of chance, the logarithm of the number of classes, is on the
# plateau.
PLATEAU_PART = 0.98
# Adam's steps don't shrink with the gradient, which is small on the plateau.
PLATEAU_ADAM_RATE = 0.0003


class Trouble(NamedTuple):
    """A sentence about a training loss, and the change that often helps, without a smaller rate."""

    text: str
    help: str | None


def warning_after_epoch(config: Config, rows: Sequence[EpochRow]) -> str | None:
    """Return a line about the last epoch's training loss, if it is the first to give one, and help.

    So a run has one such line at most, also where it is resumed.

    >>> from funcnets.cli.curve_warnings import warning_after_epoch
    >>> from funcnets.runs import Config, EpochRow
    >>> rows = [EpochRow(1, 469, 0.5, 0.8, 0.5, 0.8, None, 1.0)]
    >>> rows += [EpochRow(2, 938, 0.9, 0.7, 0.9, 0.7, None, 1.0)]
    >>> warning_after_epoch(Config.from_recipe("googlenet", "reference"), rows)
    'training loss rose from 0.500 in epoch 1 to 0.900 in epoch 2; a warm-up (--warmup 1) or a \
smaller rate (--lr 0.05) often helps'
    """
    is_first = not any(_trouble(config, rows[:end]) for end in range(1, len(rows)))
    trouble = _trouble(config, rows) if is_first else None
    if trouble is None:
        return None
    rate = f"a smaller rate (--lr {config.learning_rate / 2:g}) often helps"
    return f"{trouble.text}; {f'{trouble.help} or ' if trouble.help else ''}{rate}"


def _trouble(config: Config, rows: Sequence[EpochRow]) -> Trouble | None:
    """Return what is wrong with the last epoch's training loss."""
    if not rows or rows[-1].step < LEAST_STEPS:
        return None
    *earlier, last = rows
    chance = math.log(max(len(config.class_names), 2))
    if last.train_loss > PLATEAU_PART * chance:
        adam = f"Adam (--optimizer adam --lr {PLATEAU_ADAM_RATE:g})"
        return Trouble(
            f"training loss is {last.train_loss:.3f} after {last.step:,} steps, that of chance "
            f"{chance:.3f}",
            adam if config.optimizer == "sgd" else None,
        )
    lowest = min(earlier, key=lambda row: row.train_loss, default=last)
    if last.train_loss > max(SPIKE_FACTOR * lowest.train_loss, lowest.train_loss + SPIKE_RISE):
        warm_up = f"a warm-up (--warmup {min(1, config.epochs / 2):g})"
        return Trouble(
            f"training loss rose from {lowest.train_loss:.3f} in epoch {lowest.epoch} to "
            f"{last.train_loss:.3f} in epoch {last.epoch}",
            None if config.warmup else warm_up,
        )
    return None
