"""Optimizers with the learning rate in their state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets.optim.transformations import Optimizer


class RateState(NamedTuple):
    """State of a `rated` optimizer."""

    rate: Tensor  # float64, 0-d, or (M,) when stacked
    inner: Any  # state of the optimizer made with the rate


def rated(make: Callable[[Any], Optimizer], rate: float | Tensor) -> Optimizer:
    """Return the optimizer `make(rate)` with its learning rate in its state, not in the graph.

    So each member of an ensemble can have a learning rate of its own.  `rated(optim.sgd, 0.1)`, or
    with a schedule `rated(lambda rate: optim.sgd(optim.linear(rate, 1000)), 0.1)`.  As optax's
    `inject_hyperparams`.

    Raises TypeError if `make` is an optimizer, not a function that makes one.

    >>> import torch
    >>> from funcnets import optim
    >>> optimizer = optim.rated(optim.sgd, 0.1)
    >>> params = {"bias": torch.ones(1)}
    >>> opt_state = optimizer.init(params)._replace(rate=torch.tensor(0.5, dtype=torch.float64))
    >>> optimizer.update(params, opt_state, params)[0]
    {'bias': tensor([-0.5000])}
    """
    if isinstance(make, Optimizer):
        raise TypeError(
            "rated: got an optimizer, expected a function from a rate to an optimizer: "
            "optim.sgd, or lambda rate: optim.sgd(rate, momentum=0.9)"
        )

    def init(params: Any) -> RateState:
        inner = make(rate).init(params)
        device = next((leaf.device for leaf in tree.leaves(params)), None)
        return RateState(torch.as_tensor(rate, dtype=torch.float64, device=device), inner)

    def update(grads: Any, state: RateState, params: Any) -> tuple[Any, RateState]:
        if not isinstance(state, RateState):
            raise ValueError(
                f"the optimizer is rated and its state is {type(state).__name__}, expected "
                "RateState: create the members with the optimizer that trains them"
            )
        updates, inner = make(state.rate).update(grads, state.inner, params)
        return updates, RateState(state.rate, inner)

    return Optimizer(init, update, is_whole=True)
