"""Mistakes that ended in raw errors, or in none: each names what was given, and what to do."""

import pickle

import pytest
import torch

import funcnets
from funcnets import optim, random, sequential, train
from funcnets.layers import flatten, linear

NET = sequential(f=flatten(), fc=linear(5))
X, Y = torch.linspace(0, 1, 8 * 16).view(8, 1, 4, 4), torch.arange(8) % 5
PARAMS = {"w": torch.ones(2), "b": torch.ones(1)}
ADAM = optim.adam(0.1)


def updated(gradients):
    return ADAM.update(gradients, ADAM.init(PARAMS), PARAMS)


def stepped(optimizer=ADAM, batch=(X, Y)):
    """One step by an optimizer of a state that Adam's `init` made."""
    state = train.create(NET, ADAM, random.key(0), X)
    return train.make_train_step(NET, optimizer)(state, batch)


def fitted(batch, **options):
    state = train.create(NET, ADAM, random.key(0), X)
    return list(train.fit(train.make_train_step(NET, ADAM), state, batch, epochs=1, **options))


def compiled_with_label(label):
    state = train.create(NET, ADAM, random.key(0), X)
    step = funcnets.jit(train.make_train_step(NET, ADAM), backend="graph")
    return step(state, (X, torch.full_like(Y, label)))


def donated_expanded():
    step = funcnets.jit(lambda s: s + torch.arange(3.0), donate_argnums=0, backend="graph")
    return step(torch.zeros(1).expand(3))


CASES = {
    "gradients without a leaf": (
        lambda: updated({"w": torch.ones(2)}),
        ValueError,
        r"a key b more: give trees with the same names",
    ),
    "a gradient that is None": (
        lambda: updated({"w": torch.ones(2), "b": None}),
        TypeError,
        r"^b: the gradient is None; expected a tensor: give zeros",
    ),
    "Adam's state, SGD with momentum": (
        lambda: stepped(optim.sgd(0.1, 0.9)),
        ValueError,
        r"state is AdamState; expected a MomentumState: pass the state",
    ),
    "a constant rate's state, a schedule": (
        lambda: stepped(optim.adam(optim.constant(0.1))),
        ValueError,
        r"expected a StepState, as the rate is a schedule: pass the state",
    ),
    "Adam's state, a partition": (
        lambda: stepped(optim.partition({"*": optim.adam(0.1)})),
        ValueError,
        r"expected a dict with a part for each pattern: pass the state",
    ),
    "a partition of a function": (
        lambda: optim.partition({"*": optim.sgd}).init(PARAMS),
        TypeError,
        r"the optimizer for `\*` is <function sgd .*expected an Optimizer: call the function",
    ),
    "masked by a list": (
        lambda: optim.masked(optim.sgd(0.1), ["w"]),
        TypeError,
        r"masked: a pattern is \['w'\]; expected strings, each an argument",
    ),
    "masked by nothing": (
        lambda: optim.masked(optim.sgd(0.1)),
        ValueError,
        r"masked: no pattern is given; expected one or more",
    ),
    "a batch as a dict": (
        lambda: stepped(batch={"image": X, "label": Y}),
        TypeError,
        r"the batch is \{'image'.*expected two tensors",
    ),
    "fit with batches of 0": (
        lambda: fitted((X, Y), batch_size=0),
        ValueError,
        r"batch_size is 0; expected a whole number, 1 or more",
    ),
    "fit without examples": (
        lambda: fitted((X[:0], Y[:0]), batch_size=4),
        ValueError,
        r"images of shape \(0, 1, 4, 4\).*N ≥ 1",
    ),
    "label 5 of 5 under jit": (
        lambda: compiled_with_label(5),
        ValueError,
        r"a label is out of range .*as many classes as there are labels",
    ),
    "donated, expanded": (
        donated_expanded,
        ValueError,
        r"donated tensor of shape \(3,\) is expanded.*: clone it, or don't donate",
    ),
    "a network that is pickled": (
        lambda: pickle.dumps(NET),
        TypeError,
        r"consists of functions.*build it there",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_says_what_to_do(name):
    mistake, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        mistake()


def test_a_schedule_takes_a_python_number():
    assert optim.cosine(0.1, 10)(5) == pytest.approx(0.05)
