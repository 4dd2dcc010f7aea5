"""Run directories: configurations, metrics and checkpoints, as `funcnets train` leaves them.

`load(path)` gives the trained network of a run:

    trained = funcnets.runs.load("runs/lenet_bn-tuned-seed0")
    x = trained.prepare(images)  # of uint8 (N, C, H, W)
    logits, _ = trained.net.apply(trained.params, trained.state, x)
    name = trained.classes[logits[0].argmax()]

`RunDirectory(path)` reads and writes the files of a run: its `Config` (a sweep's `SweepConfig`),
the rows of its metrics (`EpochRow`, `StepRow`, `MemberRow`) and its checkpoints.  `build`,
`create_train_state` and `read_train_state` make what a configuration describes.
"""

from funcnets.runs.config import FACTS, SCHEDULES, Config, ConfigError, SweepConfig
from funcnets.runs.directory import RunDirectory, RunError
from funcnets.runs.recipe import evaluated, make_step, preparation
from funcnets.runs.restore import (
    LoadedRun,
    build,
    build_network,
    create_train_state,
    load,
    read_newest,
    read_train_state,
    steps_done,
)
from funcnets.runs.rows import EpochRow, MemberRow, StepRow, best_row, best_step, is_stopped_early

__all__ = [
    "FACTS",
    "SCHEDULES",
    "Config",
    "ConfigError",
    "EpochRow",
    "LoadedRun",
    "MemberRow",
    "RunDirectory",
    "RunError",
    "StepRow",
    "SweepConfig",
    "best_row",
    "best_step",
    "build",
    "build_network",
    "create_train_state",
    "evaluated",
    "is_stopped_early",
    "load",
    "make_step",
    "preparation",
    "read_newest",
    "read_train_state",
    "steps_done",
]
