"""Transforms treat a lifted module as a network of the library's own layers."""

import pytest
import torch
from modules import Classifier, Tied
from tensors import same
from test_lift import KEY, by_name, copied, images
from torch import nn

import funcnets
from funcnets import core, interop, losses, optim, random, summary, train, transforms, tree
from funcnets.core import LayerError
from funcnets.testing import assert_close, random_like
from funcnets.transforms import ensemble

NET = interop.lift(Classifier)
X = images((6, 3, 6, 6), 5)
BATCH = (X, torch.arange(6) % 3)
PARAMS, STATE = NET.init(random.key(3), X)


def gradients(gradient=train.batch_gradient, net=NET):
    grads, state, measured = gradient(net, losses.cross_entropy, PARAMS, STATE, BATCH, key=KEY)
    return by_name(grads, state, measured)


def loss(params):
    logits, _ = NET.apply(params, STATE, X, train=True, key=KEY)
    return losses.cross_entropy(logits, BATCH[1])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulation_is_exact(size):
    assert_close(gradients(transforms.accumulate(size)), gradients())


def one_by_one(net):
    """The gradient of each example's loss in the whole batch."""

    def loss_of(params, i):
        logits, _ = net.apply(params, STATE, X, train=True, key=KEY)
        return losses.cross_entropy(logits[i : i + 1], BATCH[1][i : i + 1])

    return tree.transpose(torch.func.grad(loss_of)(PARAMS, i) for i in range(len(X)))


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
def test_gradients_of_examples_are_those_in_the_batch(statistics):
    net = transforms.frozen_statistics(NET) if statistics == "frozen" else NET
    each = transforms.per_example_gradients(
        NET, PARAMS, STATE, BATCH, key=KEY, statistics=statistics
    )
    assert_close(by_name(each.gradients), by_name(one_by_one(net)))
    after = STATE if statistics == "frozen" else NET.apply(PARAMS, STATE, X, train=True, key=KEY)[1]
    assert_close(by_name(each.state), by_name(after))


def test_constant_statistics_are_those_of_the_batch():
    each = transforms.per_example_gradients(
        NET, PARAMS, STATE, BATCH, key=KEY, statistics="batch_constant"
    )
    logits, after = NET.apply(PARAMS, STATE, X, train=True, key=KEY)
    assert_close({"": each.logits}, {"": logits})
    assert_close(by_name(each.state), by_name(after))


def test_frozen_statistics_keep_the_state():
    y, state = transforms.frozen_statistics(NET).apply(PARAMS, STATE, X, train=True, key=KEY)
    assert same(state, STATE)
    assert not torch.equal(y, NET.apply(PARAMS, STATE, X, train=True, key=KEY)[0])


def test_parts_are_captured_and_shifted():
    paths = ["stem", "blocks.0", "blocks.1.norm", "head"]
    options = {"train": True, "key": KEY}
    found = transforms.capture(NET, PARAMS, STATE, X, paths=paths, **options)
    y, state = NET.apply(PARAMS, STATE, X, **options)
    assert same((found.output, found.state), (y, state))
    assert [*found.activations] == paths
    assert torch.equal(found.activations["head"], y)
    stem = PARAMS["stem"]
    expected = nn.functional.conv2d(X, stem["weight"], stem["bias"])
    torch.testing.assert_close(found.activations["stem"], expected)
    shifts = {"head": torch.ones_like(y)}
    shifted = transforms.capture(NET, PARAMS, STATE, X, paths=[], shifts=shifts, **options)
    torch.testing.assert_close(shifted.output, y + 1)


@pytest.mark.parametrize("parts", [("blocks",), ("blocks.0", "blocks.1.norm", "dropout")])
def test_recomputed_parts_give_the_same(parts):
    def replaced(name, layer):
        return transforms.remat(layer) if name in parts else layer

    assert_close(gradients(net=core.rewrite(NET, replaced)), gradients())


def test_a_value_that_is_not_finite_is_found():
    params = copied(PARAMS)
    params["blocks"]["1"]["conv"]["weight"][0, 0, 0, 0] = torch.nan
    net = transforms.check_finite(NET)
    assert torch.isfinite(net.apply(PARAMS, STATE, X)[0]).all()
    with pytest.raises(transforms.NonFiniteError, match=r"^blocks\.1\.conv: has a `weight`"):
        net.apply(params, STATE, X)


def test_the_summary_counts_parts():
    rows = {row.name: row for row in summary.summarize(NET, (2, 3, 6, 6))}
    assert rows["stem"].shape == (2, 4, 4, 4)
    assert rows["blocks.0.norm"].parameters == 8
    assert rows[""].parameters == tree.count(PARAMS)
    assert rows["head"].multiply_adds == 2 * 4 * 3


def test_products_with_the_hessian_are_differences_of_gradients():
    tangent, step = random_like(PARAMS, 1), 1e-6
    gradient = torch.func.grad(loss)
    product = torch.func.jvp(gradient, (PARAMS,), (tangent,))[1]
    ahead, behind = (
        gradient(tree.map(lambda leaf, along, by=by: leaf + by * along, PARAMS, tangent))
        for by in (step, -step)
    )
    differences = tree.map(lambda after, before: (after - before) / (2 * step), ahead, behind)
    assert_close(by_name(product), by_name(differences), 1e-7)


def trained(step, train_state, count=3):
    for _ in range(count):
        train_state, measured = step(train_state, BATCH)
    return train_state, measured


OPTIMIZER = optim.sgd(0.1, momentum=0.9)
STEP = train.make_train_step(NET, OPTIMIZER)


def test_donated_steps_under_jit_are_the_eager_ones():
    start = train.create(NET, OPTIMIZER, KEY, X)
    jitted = funcnets.jit(STEP, donate_argnums=0, backend="graph")
    expected = trained(STEP, start)
    assert_close(by_name(*trained(jitted, copied(start))), by_name(*expected))


def test_members_train_as_they_do_alone():
    keys = random.split(KEY, 3)
    members = ensemble.create(NET, OPTIMIZER, keys, X)
    actual = trained(ensemble.make_ensemble_step(STEP), members)
    each = [trained(STEP, train.create(NET, OPTIMIZER, key, X)) for key in keys]
    assert_close(by_name(*actual), by_name(*ensemble.stack(each)))


def test_members_of_one_module_would_be_equal():
    net = interop.lift(Classifier())
    with pytest.raises(ValueError, match=r"0 and 1 have different keys and equal param.*lift"):
        ensemble.create(net, OPTIMIZER, random.split(KEY, 3), X)
    state = train.create(net, OPTIMIZER, KEY, X)
    assert len(ensemble.stack([state, state]).step) == 2


class Functional(nn.Module):
    """Dropout by a function, which no transform can tell from other random functions."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(nn.functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize(
    "gradient", [transforms.accumulate(2), transforms.per_example()], ids=["accumulate", "examples"]
)
def test_noise_that_is_no_part_is_refused_where_examples_are_taken_apart(gradient):
    net, x = interop.lift(lambda: nn.Sequential(Functional())), images((6, 4))
    params, state = net.init(KEY, x)
    net.apply(params, state, x, train=True, key=KEY)
    with pytest.raises(LayerError, match=r"^0: draws in the forward of Functional: it is unknown"):
        gradient(net, losses.cross_entropy, params, state, (x, BATCH[1]), key=KEY)


def test_a_batch_norm_that_runs_twice_is_refused_where_its_statistics_are_shared():
    net, x = interop.lift(Tied), images((6, 4))
    params, state = net.init(KEY, x)
    batch = (x, BATCH[1])
    with pytest.raises(LayerError, match=r"^norm: BatchNorm1d.*runs twice in a call"):
        transforms.accumulate(2)(net, losses.cross_entropy, params, state, batch, key=KEY)


class InPlace(nn.Module):
    """A block whose first layer writes to its input, which is read again."""

    def __init__(self, nested):
        super().__init__()
        activation = nn.ReLU(inplace=True)
        self.block = nn.Sequential(activation) if nested else activation

    def forward(self, x):
        x = x + 0
        return self.block(x) + 2 * x


def test_an_activation_in_place_can_be_replaced():
    net, x = interop.lift(InPlace(nested=False)), images((6, 4))
    found = transforms.capture(net, {}, {}, x, paths=["block"])
    assert torch.equal(found.output, 3 * x.relu())
    assert torch.equal(found.activations["block"], x.relu())


def test_a_part_that_writes_to_its_input_is_not_replaced():
    net, x = interop.lift(InPlace(nested=True)), images((6, 4))
    assert torch.equal(net.apply({}, {}, x)[0], 3 * x.relu())
    with pytest.raises(LayerError, match=r"^block: Sequential: its forward writes to its input"):
        transforms.capture(net, {}, {}, x, paths=["block"])
