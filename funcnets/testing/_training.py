"""Training of a layer against training of a module, step by step."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from funcnets import losses, optim, train
from funcnets.core import Layer
from funcnets.interop import Rename
from funcnets.optim import Optimizer
from funcnets.testing._difference import assert_close
from funcnets.testing._equivalence import SIDES, Pair, input_of, pair_of, usual_tolerance
from funcnets.testing._noise import Drawn, masks, training_key
from funcnets.testing._values import generator
from funcnets.train import Loss

Optimizers = tuple[Optimizer, Callable[[Iterable[Tensor]], torch.optim.Optimizer]]


def assert_trains_alike(
    layer: Layer,
    module: nn.Module,
    shape: Sequence[int],
    *,
    optimizers: Optimizers | None = None,
    steps: int = 5,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    loss: Loss = losses.cross_entropy,
    transform: Callable[..., Any] = lambda step: step,
    rename: Rename | None = None,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    values: Literal["random", "module"] = "random",
    seed: int = 0,
) -> None:
    """Raise Difference unless training steps change a layer and a module alike.

    After each step, on a batch of its own unless `batches` are given, the loss, parameters and
    running statistics are compared.  Networks that explode are compared until their loss is above
    1,000, as rounding explodes with them.

    Args:
        layer, module, rename, dtype, tolerance, values, seed: as those of `assert_equivalent`.
        shape: shape of a batch, (N, ...); outputs are logits (N, classes).
        optimizers: the layer's optimizer, and a function from parameters to the module's; None for
            SGD at a rate of 0.01.
        steps: number of steps; without an effect where batches are given.
        batches: the input and the labels (N,) of each step; None for random ones.
        loss: (logits, labels (N,)) -> 0-d.
        transform: applied to the layer's step, such as `funcnets.jit`.

    >>> import torch
    >>> from funcnets import layers, optim, testing
    >>> adam = (optim.adam(1e-3), lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    >>> testing.assert_trains_alike(
    ...     layers.linear(3), torch.nn.Linear(5, 3), (4, 5), optimizers=adam
    ... )
    """
    x = input_of(shape, seed, dtype)
    pair = pair_of(layer, module, x, rename=rename, values=values, seed=seed)
    tolerance = usual_tolerance(dtype) if tolerance is None else tolerance
    if batches is None:
        classes = layer.apply(pair.params, pair.state, x)[0].shape[1]
        batches = _batches(x, classes, steps, seed)
    ours, theirs = optimizers or (optim.sgd(0.01), partial(torch.optim.SGD, lr=0.01))
    step = transform(train.make_train_step(layer, ours, loss=loss))
    train_state = train.TrainState(
        torch.zeros((), dtype=torch.int64),
        pair.params,
        pair.state,
        ours.init(pair.params),
        pair.key,
    )
    optimizer = theirs(pair.module.parameters())
    for index, batch in enumerate(batches):
        drawn = _drawn_in_step(layer, train_state, batch[0])
        train_state, measured = step(train_state, batch)
        expected = _module_step(pair, optimizer, batch, loss, drawn)
        if index and not float(expected["loss"]) < 1e3:
            return
        actual = {
            "loss": measured["loss"], "params": train_state.params, "state": train_state.state
        }  # fmt: skip
        assert_close(actual, expected, tolerance, f"training step {index + 1}", names=SIDES)


def _batches(x: Tensor, classes: int, steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    source = generator(seed)
    return [
        (
            torch.randn(x.shape, generator=source, dtype=torch.float64).to(x.dtype),
            torch.randint(classes, x.shape[:1], generator=source),
        )
        for _ in range(steps)
    ]


def _drawn_in_step(layer: Layer, train_state: train.TrainState, x: Tensor) -> list[Drawn]:
    if not layer.stochastic:
        return []
    key = training_key(train_state.key, int(train_state.step))
    return masks(layer, train_state.params, train_state.state, x, key)


def _module_step(
    pair: Pair,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    drawn: list[Drawn],
) -> dict[str, Any]:
    loss = nn.functional.cross_entropy if loss is losses.cross_entropy else loss
    value = loss(pair.call_module(batch[0], True, drawn), batch[1])
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    params, state = pair.in_layer(dict(pair.module.named_parameters()))
    return {"loss": value.detach(), "params": params, "state": state}
