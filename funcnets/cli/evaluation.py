"""Evaluation over all test images: after each epoch, and of a run's newest checkpoint."""

import math
from collections.abc import Callable
from typing import Any

from funcnets import precision, runs, train
from funcnets.cli.preparation import ALONE, Setup
from funcnets.compiler import jit
from funcnets.core import Layer
from funcnets.data import Dataset
from funcnets.metrics import Running
from funcnets.parallel import Processes
from funcnets.precision import POLICIES
from funcnets.runs import Config
from funcnets.runs.networks import is_imported
from funcnets.train import Prepare, TrainState


class StoppedError(Exception):
    """An evaluation was stopped between two batches."""


class Evaluation:
    """Loss and accuracy over all test images, of which each process takes its share.

    Its graph runs as it is: evaluation is a small part of an epoch, and compiling it costs more
    than that could save.

    Attributes:
        is_stopped: asked before each batch; if it is true, StoppedError is raised.  Several
            processes would not stop at one batch, so they go on to the end.
    """

    is_stopped: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(
        self, config: Config, net: Layer, dataset: Dataset, processes: Processes = ALONE
    ) -> None:
        self.processes, axis = processes, processes.axis
        self.batch = (axis.shard(dataset.test_images), axis.shard(dataset.test_labels))
        limit = -(-config.batch_size // axis.size)
        self.size = evaluation_batch_size(len(self.batch[1]), limit)
        policy = POLICIES[config.precision]
        net = precision.cast(net, policy)
        function = self.function(net, runs.preparation(config))
        name = f"{type(self).__name__} {(config.network, config.side, config.precision)}"
        if config.normalize:
            name += f" {config.mean} {config.deviation}"
        # The code behind an import path may change between runs.
        saved_as = None if is_imported(config.network) else name
        self._step = jit(
            function,
            backend="graph",
            saved_as=saved_as,
            tf32=policy.tf32,
            deterministic=config.deterministic,
        )

    def function(self, net: Layer, prepare: Prepare) -> Callable[..., Any]:
        """Return the step: of parameters, statistics and a batch."""
        return train.make_eval_step(net, prepare=prepare)

    def step(self, *arguments: Any) -> Any:
        """Evaluate a batch.  Raises StoppedError if the evaluation is to stop."""
        if self.processes.axis.size == 1 and self.is_stopped():
            raise StoppedError
        return self._step(*arguments)

    def __call__(self, train_state: TrainState) -> Any:
        """Return the averages over all test images, a `metrics.Running`."""
        params, state = runs.evaluated(train_state)
        own = Running()
        if len(self.batch[1]):
            own = train.evaluate(self.step, params, state, self.batch, batch_size=self.size)
        return Running(*map(sum, zip(*self.processes.gather(own), strict=True)))


def evaluation_batch_size(count: int, limit: int) -> int:
    """Return the largest batch size up to `limit` that divides `count`: all batches are alike.

    Where that is less than half of what could be, the last batch is another one.
    """
    largest = max(1, min(count, limit))
    return next((n for n in range(largest, largest // 2, -1) if count % n == 0), largest)


def finite(value: float) -> float | None:
    """Return a number, or None if it isn't finite, for which JSON has no word."""
    return value if math.isfinite(value) else None


def evaluate(setup: Setup) -> dict[str, Any]:
    """Return loss and accuracy of a training's train state over all test images, for JSON."""
    evaluation = Evaluation(setup.config, setup.net, setup.dataset, setup.processes)
    tested = evaluation(setup.train_state)
    return {
        "run": str(setup.directory.path),
        "network": setup.config.network,
        "step": runs.steps_done(setup.train_state),
        "test_images": tested.count,
        "test_loss": finite(tested.loss),
        "test_accuracy": tested.accuracy,
    }
