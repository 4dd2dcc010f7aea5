"""Optimizers refuse hyper-parameters out of range, and states and gradients of others."""

import pytest
import torch

from funcnets import optim


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.sgd(-0.1), "learning_rate is -0.1; expected a finite number, 0 or more"),
        (lambda: optim.sgd(float("nan")), "learning_rate is nan"),
        (lambda: optim.sgd("fast"), "learning_rate is 'fast'"),
        (lambda: optim.sgd(torch.ones(2)), r"learning_rate is a tensor of shape \(2,\)"),
        (lambda: optim.sgd(torch.tensor(1)), "learning_rate is a tensor .* torch.int64"),
        (lambda: optim.sgd(0.1, -0.9), "momentum is -0.9"),
        (lambda: optim.sgd(0.1, nesterov=True), "Nesterov momentum needs momentum above 0"),
        (lambda: optim.sgd(0.1, 0.9, nesterov=True, dampening=0.1), "dampening=0"),
        (lambda: optim.sgd(0.1, 0.9, dampening=float("inf")), "dampening is inf"),
        (lambda: optim.sgd(0.1, weight_decay=-1.0), "weight_decay is -1.0"),
        (lambda: optim.adam(0.1, betas=(0.9, 1.0)), r"betas is 1.0; expected .* \[0, 1\)"),
        (lambda: optim.adam(0.1, betas=(-0.1, 0.9)), "betas is -0.1"),
        (lambda: optim.adam(0.1, eps=-1e-8), "eps is -1e-08"),
        (lambda: optim.adamw(0.1, weight_decay=-1.0), "weight_decay is -1.0"),
        (lambda: optim.clip_by_global_norm(-1.0), "max_norm is -1.0"),
        (lambda: optim.exponential_moving_average(1.0), r"decay is 1.0; expected .* \[0, 1\)"),
        (lambda: optim.constant(-1.0), "value is -1.0"),
        (lambda: optim.step_decay(0.1, 0, 0.5), "every is 0; expected 1 or more steps"),
        (lambda: optim.step_decay(0.1, 2, -0.5), "factor is -0.5"),
        (lambda: optim.linear(0.1, 0), "total_steps is 0"),
        (lambda: optim.linear(0.1, 5, -0.1), "end is -0.1"),
        (lambda: optim.cosine(0.1, 2.5), "total_steps is 2.5"),
        (lambda: optim.warmup(-1, optim.constant(0.1)), "steps is -1"),
        (lambda: optim.one_cycle(0.1, 5, pct_start=1.0), r"pct_start is 1.0; .* \[0, 1\)"),
        (lambda: optim.one_cycle(0.1, 5, div_factor=0.0), "div_factor is 0.0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


P = {"w": torch.ones(2), "b": torch.ones(1)}
ADAM = optim.adam(0.1)


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        (optim.sgd(0.1, 0.9), ADAM.init(P)),
        (optim.adam(optim.constant(0.1)), ADAM.init(P)),
        (optim.adam(0.1), optim.adam(optim.constant(0.1)).init(P)),
        (optim.partition({"*": ADAM}), ADAM.init(P)),
        (
            optim.sgd(0.1, 0.9, dampening=0.5),
            optim.adam(optim.constant(0.1), weight_decay=1).init(P),
        ),
        (optim.add_noise(1.0, torch.zeros(2, dtype=torch.int32)), ()),
        (ADAM, None),
    ],
)
def test_the_state_of_another_optimizer_is_refused(optimizer, state):
    with pytest.raises(ValueError, match=r"state is .*; expected .*this optimizer's own init"):
        optimizer.update(P, state, P)


def test_what_is_no_gradient_and_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="b: the gradient is None; expected a tensor"):
        optim.sgd(0.1).update({"w": torch.ones(2), "b": None}, ((),), P)
    with pytest.raises(TypeError, match="b: the gradient is None; expected a tensor: give zeros"):
        ADAM.update({"w": torch.ones(2), "b": None}, ADAM.init(P), P)
    with pytest.raises(TypeError, match="part 1 of the chain is <function sgd"):
        optim.chain(ADAM, optim.sgd)
    with pytest.raises(TypeError, match=r"the optimizer for `\*` is <function sgd"):
        optim.partition({"*": optim.sgd})
