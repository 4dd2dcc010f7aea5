"""A lifted module computes what the module does, and changes nothing."""

import copy
import threading
from functools import partial

import pytest
import torch
from modules import IMAGES, MODULES, Classifier
from tensors import same
from torch import nn

import funcnets
from funcnets import checkpoint, interop, layers, optim, random, train, tree
from funcnets.core import LayerError
from funcnets.testing import assert_close, assert_equivalent

KEY = random.key(7)


def images(shape=IMAGES, seed=0):
    return random.normal(random.key(seed), shape, torch.float64)


def seeded(factory, seed=0):
    """A module whose values PyTorch's generator has drawn, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory().double()


def by_name(*trees):
    return tree.flatten_named(dict(enumerate(trees)))


def copied(values):
    return tree.map(torch.clone, values)


def assert_equals_module(module, x, tolerance=1e-9):
    """All that both compute is the same, and after more calls; and nothing is changed."""
    net, twin = interop.lift(module), copy.deepcopy(module).train()
    params, state = interop.from_module(module)
    kept = copied((params, state, x)), copied(module.state_dict()), module.training
    once = {"batch_sizes": x.shape[:1], "memory_formats": ["contiguous"]}
    assert_equivalent(net, module, x.shape, values="module", tolerance=tolerance, **once)
    after = state
    for _ in range(3):
        _, after = net.apply(params, after, x, train=True, key=KEY)
        with torch.no_grad():
            twin(x.clone())  # which it may write to
        expected = interop.from_module(twin)[1]
        wide = (tree.map(torch.Tensor.double, leaves) for leaves in (after, expected))
        assert_close(*wide, tolerance)
        assert tree.map(lambda leaf: leaf.dtype, after) == tree.map(
            lambda leaf: leaf.dtype, expected
        )
    assert same((params, state, x), kept[0])
    assert same(module.state_dict(), kept[1])
    assert module.training == kept[2]


@pytest.mark.parametrize("name", MODULES)
def test_a_lifted_module_equals_the_module(name):
    factory, shape = MODULES[name]
    # PyTorch's gradient of hardsigmoid multiplies by 1/6 in float32, whatever its input.
    tolerance = 1e-7 if name == "hard_activations" else 1e-9
    assert_equals_module(seeded(factory), images(shape), tolerance)


def test_the_mode_and_the_values_of_the_module_do_not_matter():
    module, x = seeded(Classifier), images()
    net, (params, state) = interop.lift(module), interop.from_module(module)
    expected = net.apply(params, state, x, train=True, key=KEY)
    module.eval()
    with torch.no_grad():
        for leaf in (*module.parameters(), *module.buffers()):
            leaf.zero_()
    assert same(net.apply(params, state, x, train=True, key=KEY), expected)
    assert same(net.init(KEY, x), interop.from_module(module))


def test_threads_do_not_disturb_each_other():
    module, x = seeded(Classifier), images()
    net, (params, state) = interop.lift(module), interop.from_module(module)
    expected = {mode: net.apply(params, state, x, train=mode, key=KEY) for mode in (True, False)}
    right = []

    def work(mode):
        calls = (net.apply(params, state, x, train=mode, key=KEY) for _ in range(8))
        right.extend(same(call, expected[mode]) for call in calls)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 32


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients_are_the_same(mode):
    x, net = images(), interop.lift(Classifier)
    params, state = net.init(KEY, x)
    expected = net.apply(params, state, x, train=True, key=KEY)
    for _ in range(2):  # one that is inspected, and one that isn't
        with mode():
            assert same(net.apply(params, state, x, train=True, key=KEY), expected)


def test_a_dropout_alone_is_a_layer():
    net, x = funcnets.sequential(dropout=interop.lift(nn.Dropout(0.25))), images()
    own = funcnets.sequential(dropout=layers.dropout(0.25))
    assert same(*(each.apply({}, {}, x, train=True, key=KEY) for each in (net, own)))


class Draws(nn.Module):
    """Draws in forward, of which the i-th has a key of its own."""

    def __init__(self):
        super().__init__()
        self.dropout, self.features = nn.Dropout(0.25), nn.Dropout2d(0.5, inplace=True)

    def forward(self, x):
        x = torch.where(torch.bernoulli(torch.full_like(x, 0.5)) > 0, x, torch.rand_like(x))
        x = self.features(self.dropout(x.clone()))
        x = x + torch.randn(2, 3, dtype=x.dtype).sum() + torch.empty_like(x).uniform_(2, 3)
        return nn.functional.dropout(x, 0.1, self.training)


def test_draws_are_by_keys_numbered_in_each_module():
    x = images()
    y, _ = interop.lift(Draws()).apply({}, {}, x, train=True, key=KEY)
    keys, shape, dtype = [random.fold_in(KEY, i) for i in range(7)], tuple(x.shape), x.dtype
    expected = torch.where(
        random.bernoulli(keys[0], torch.full_like(x, 0.5), shape),
        x,
        random.uniform(keys[1], shape, dtype),
    )
    expected = expected * random.bernoulli(keys[2], 0.75, shape) / 0.75
    expected = expected * random.bernoulli(keys[3], 0.5, (*shape[:2], 1, 1)) / 0.5
    expected += random.normal(keys[4], (2, 3), dtype).sum()
    expected += random.uniform(keys[5], shape, dtype, 2.0, 3.0)
    expected = expected * random.bernoulli(keys[6], 0.9, shape) / 0.9
    torch.testing.assert_close(y, expected)


def test_draws_leave_the_global_generator_alone_and_map_over_keys():
    x, net, keys = images(), interop.lift(Classifier), random.split(KEY, 3)
    before = torch.get_rng_state()
    params, state = net.init(KEY, x)
    mapped = torch.func.vmap(lambda key: net.apply(params, state, x, train=True, key=key))(keys)
    each = [net.apply(params, state, x, train=True, key=key) for key in keys]
    assert_close(*map(by_name, (mapped[:1], tree.transpose(each)[:1])))
    assert not torch.equal(each[0][0], each[1][0])
    assert torch.equal(torch.get_rng_state(), before)


class Constructed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 400)
        self.normal = nn.Parameter(torch.randn(400, 5))
        self.uniform = nn.Parameter(torch.empty(400, 5))
        nn.init.trunc_normal_(self.uniform, std=0.1, a=-0.15, b=0.1)
        self.register_buffer("mask", torch.bernoulli(torch.full((400,), 0.25)))


def test_a_factory_draws_from_the_distributions_of_its_constructors():
    net, x = interop.lift(Constructed), torch.ones(1, 5, dtype=torch.float64)
    before = torch.get_rng_state()
    params, state = net.init(KEY, x)
    assert torch.equal(torch.get_rng_state(), before)
    bound = 5**-0.5
    weight = random.uniform(random.fold_in(KEY, 0), (400, 5), torch.float32, -bound, bound)
    assert torch.equal(params["fc"]["weight"], weight.double())
    assert abs(params["normal"].std() - 1) < 0.1
    assert -0.15 <= params["uniform"].min() < -0.14
    assert 0.09 < params["uniform"].max() <= 0.1
    assert 50 < state["mask"].sum() < 150
    assert {leaf.dtype for leaf in tree.leaves((params, state))} == {torch.float64}
    assert same(net.init(KEY, x), (params, state))
    other = by_name(*net.init(random.key(8), x))
    assert not any(torch.equal(leaf, other[name]) for name, leaf in by_name(params, state).items())


def test_constructors_that_check_their_values_are_run():
    def orthogonal():
        return nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))

    params, _ = interop.lift(orthogonal).init(KEY, torch.ones(1, 3))
    assert params["parametrizations"]["weight"]["original"].any()


def test_initial_values_follow_the_dtype_of_the_input_and_the_device_of_the_key():
    net = interop.lift(Classifier)
    params, state = net.init(KEY, images().bfloat16())
    assert {leaf.dtype for leaf in tree.leaves(params)} == {torch.bfloat16}
    assert {leaf.dtype for leaf in tree.leaves(state)} == {torch.float32, torch.int64}
    shapes = net.init(random.key(0, "meta"), images().to("meta"))
    assert {leaf.device.type for leaf in tree.leaves(shapes)} == {"meta"}
    assert tree.names(shapes) == tree.names((params, state))


def test_a_lifted_module_is_a_part_like_any_other():
    body = interop.lift(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    net, x = funcnets.sequential(body=body, head=layers.linear(2)), images()
    params, state = net.init(KEY, x)
    y, state = net.apply(params, state, x, train=True, key=KEY)
    assert y.shape == (4, 2)
    assert state["body"]["1"]["num_batches_tracked"] == 1
    assert not net.stochastic  # nothing in it draws
    assert interop.lift(Classifier).stochastic


def test_state_dicts_and_checkpoints_go_round(tmp_path):
    module, x = seeded(Classifier), images()
    net, values = interop.lift(module), interop.from_module(module)
    _, state = net.apply(*values, x, train=True, key=KEY)
    other = seeded(Classifier, 1)
    other.load_state_dict(interop.to_state_dict(values[0], state), strict=True)
    assert same(interop.from_module(other), (values[0], state))
    assert same(interop.from_state_dict(other.state_dict(), like=values), (values[0], state))
    optimizer = optim.sgd(0.1, momentum=0.9)
    step = train.make_train_step(net, optimizer)
    start = train.create(net, optimizer, KEY, x)
    train_state, _ = step(start, (x, torch.arange(4) % 3))
    checkpoint.save(tmp_path, train_state)
    assert same(checkpoint.load(tmp_path, start)[0], train_state)


def test_errors_name_the_part():
    net, x = interop.lift(Classifier), images()
    params, state = net.init(KEY, x)
    with pytest.raises(LayerError, match=r"^blocks\.0\.dropout: Dropout.*needs a key"):
        net.apply(params, state, x, train=True)
    with pytest.raises(LayerError, match=r"^norm: .*one value per channel"):
        net.apply(params, state, x[:1], train=True, key=KEY)
    with pytest.raises(LayerError, match=r"state lack blocks\.0\.norm\.running_mean.*init"):
        net.apply(params, {}, x)
    with pytest.raises(LayerError, match="got list input, expected a tensor"):
        net.apply(params, state, [x])
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, or a function"):
        interop.lift(3)
    with pytest.raises(TypeError, match=r"returned 3, expected a torch\.nn\.Module"):
        interop.lift(lambda: 3)
    with pytest.raises(LayerError, match="under vmap or jit"):
        torch.func.vmap(lambda key: net.init(key, x))(random.split(KEY, 2))
    with pytest.raises(LayerError, match="under vmap or jit"):
        funcnets.jit(partial(net.init, x=x), backend="graph")(KEY)
