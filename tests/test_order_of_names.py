"""No public function depends on the order in which the names of a tree were inserted.

Trees come in another order from sorted files, such as those of safetensors.
"""

from functools import partial

import pytest
import torch

import funcnets
from funcnets import checkpoint, interop, layers, losses, optim, precision, random, train, tree
from funcnets.transforms import (
    accumulate,
    capture,
    curvature,
    ensemble,
    laplace,
    per_example_gradients,
)

NET = funcnets.sequential(
    conv=layers.conv2d(3, 3),
    bn=layers.batch_norm(),
    tanh=layers.tanh(),
    flatten=layers.flatten(),
    alpha=layers.linear(4),
)
KEY = random.key(0)
X = random.normal(KEY, (6, 1, 5, 5), torch.float64)
Y = torch.tensor([0, 1, 2, 3, 0, 1])
PARAMS, STATE = NET.init(KEY, X)
GRADS = tree.map(torch.sin, PARAMS)
EACH = tree.map(lambda leaf: torch.stack([leaf.cos()] * 3), PARAMS)


def model(params, x):
    return NET.apply(params, STATE, x)[0]


def loss(params):
    return losses.cross_entropy(model(params, X), Y)


def product(vector):
    """A symmetric matrix that tells leaves apart."""
    scaled = tree.map_named(lambda name, leaf: leaf * (1 + len(name)), vector)
    shift = sum(leaf.sum() for leaf in tree.leaves(vector))
    return tree.map(lambda leaf: leaf + shift, scaled)


def updated(optimizer, grads, params):
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
    return updates


def stepped(params, state, **options):
    optimizer = optim.adam(0.1)
    train_state = train.create(NET, optimizer, KEY, X)
    train_state = train_state._replace(params=params, state=state, opt_state=optimizer.init(params))
    step = train.make_train_step(NET, optimizer, **options)
    return step(train_state, (X, Y))


def jitted(params, state):
    step = funcnets.jit(train.make_train_step(NET, optim.sgd(0.1)), backend="graph")
    train_state = train.create(NET, optim.sgd(0.1), KEY, X)
    return step(train_state._replace(params=params, state=state), (X, Y))


POSTERIOR = laplace.fit(model, PARAMS, [(X, Y)], structure="full")
AVERAGE = optim.exponential_moving_average(0.9)

FUNCTIONS = {
    "apply": (lambda p, s: NET.apply(p, s, X, train=True), (PARAMS, STATE)),
    "apply_updates": (optim.apply_updates, (PARAMS, GRADS)),
    "sgd": (partial(updated, optim.sgd(0.1, 0.9, weight_decay=0.1)), (GRADS, PARAMS)),
    "adamw": (partial(updated, optim.adamw(0.1)), (GRADS, PARAMS)),
    "clip": (partial(updated, optim.clip_by_global_norm(0.1)), (GRADS, PARAMS)),
    "masked": (partial(updated, optim.masked(optim.adam(0.1), "conv.*")), (GRADS, PARAMS)),
    "partition": (
        partial(updated, optim.partition({"conv.*": optim.sgd(0.1), "*": optim.adam(0.1)})),
        (GRADS, PARAMS),
    ),
    "add_noise": (partial(updated, optim.add_noise(1.0, KEY)), (GRADS, PARAMS)),
    "private": (partial(updated, optim.private(1.0, 1.0, 3, KEY)), (EACH, PARAMS)),
    "global_norm": (optim.global_norm, (GRADS,)),
    "per_example_norms": (optim.per_example_norms, (EACH,)),
    "mask": (partial(optim.mask), (PARAMS,)),
    "moving_average": (lambda a, b: AVERAGE.update(a, AVERAGE.init(b)), (PARAMS, GRADS)),
    "rademacher_like": (partial(curvature.rademacher_like, KEY), (PARAMS,)),
    "dot": (curvature.dot, (PARAMS, GRADS)),
    "hessian_product": (partial(curvature.hessian_product, loss), (PARAMS, GRADS)),
    "hessian_product_reverse": (
        partial(curvature.hessian_product, loss, mode="reverse_over_reverse"),
        (PARAMS, GRADS),
    ),
    "gauss_newton_product": (
        partial(curvature.gauss_newton_product, lambda p: model(p, X), lambda y: y.square().mean()),
        (PARAMS, GRADS),
    ),
    "trace": (lambda like: curvature.hutchinson_trace(product, like, KEY, samples=3), (PARAMS,)),
    "eigenvalue": (
        lambda like: curvature.largest_eigenvalue(product, like, KEY, iterations=3),
        (PARAMS,),
    ),
    "laplace_fit": (lambda p: laplace.fit(model, p, [(X, Y)], structure="full"), (PARAMS,)),
    "log_evidence": (
        lambda p: laplace.log_evidence(POSTERIOR._replace(mean=p), 1.0),
        (PARAMS,),
    ),
    "logit_distribution": (
        lambda p: laplace.logit_distribution(POSTERIOR._replace(mean=p), model, X, 1.0),
        (PARAMS,),
    ),
    "train_step": (stepped, (PARAMS, STATE)),
    "accumulated": (partial(stepped, gradient=accumulate(2)), (PARAMS, STATE)),
    "jit": (jitted, (PARAMS, STATE)),
    "capture": (lambda p, s: capture(NET, p, s, X, paths=["conv"]), (PARAMS, STATE)),
    "cast": (
        lambda p, s: precision.cast(NET, precision.POLICIES["bfloat16"]).apply(p, s, X),
        (PARAMS, STATE),
    ),
    "per_example_gradients": (
        lambda p, s: per_example_gradients(NET, p, s, (X, Y), statistics="frozen"),
        (PARAMS, STATE),
    ),
    "to_state_dict": (interop.to_state_dict, (PARAMS, STATE)),
    "to_module": (lambda p, s: interop.to_module(NET, p, s).eval()(X), (PARAMS, STATE)),
    "transpose": (lambda a, b: tree.transpose([a, b]), (PARAMS, GRADS)),
    "difference": (
        lambda a, b: {"same": torch.tensor(tree.difference(a, b) is None)},
        (PARAMS, GRADS),
    ),
    "member_logits": (
        lambda p, s: ensemble.member_logits(NET, p, s, X),
        (tree.transpose([PARAMS, GRADS]), tree.transpose([STATE, STATE])),
    ),
}


def turned(values):
    """The same tree with the names of every dict inserted in the reverse order."""
    if not isinstance(values, dict):
        return values
    return {name: turned(part) for name, part in reversed(values.items())}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_order_of_insertion_does_not_matter(name):
    function, arguments = FUNCTIONS[name]
    expected = tree.flatten_named(function(*arguments))
    assert expected
    for i, argument in enumerate(arguments):
        assert str(turned(argument)) != str(argument)
        others = [*arguments[:i], turned(argument), *arguments[i + 1 :]]
        actual = tree.flatten_named(function(*others))
        assert actual.keys() == expected.keys()
        for path, leaf in expected.items():
            if isinstance(leaf, torch.Tensor):
                torch.testing.assert_close(actual[path], leaf, rtol=1e-12, atol=1e-12, msg=path)
            else:
                assert actual[path] == leaf


def test_a_checkpoint_is_loaded_by_name(tmp_path):
    checkpoint.save(tmp_path / "one", (turned(PARAMS), STATE), metadata={})
    loaded, _ = checkpoint.load(tmp_path / "one", (PARAMS, turned(STATE)))
    for path, leaf in tree.flatten_named((PARAMS, STATE)).items():
        assert torch.equal(tree.flatten_named(loaded)[path], leaf)
