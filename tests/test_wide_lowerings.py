"""Products of bfloat16 in float32 are those of ATen, rounded once."""

import pytest
import torch

import funcnets
from funcnets import layers, losses, models, optim, random, train, tree
from funcnets.jit.lowerings import wide
from funcnets.precision import POLICIES

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _without_instructions(monkeypatch):
    monkeypatch.setattr(wide, "has_bfloat16", lambda: False)


def drawn(*shape, seed=0, dtype=torch.bfloat16):
    return random.normal(random.key(seed), shape).to(dtype)


HOW = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
MAPS, KERNELS, BIAS = drawn(2, 3, 6, 6), drawn(4, 3, 3, 3, seed=1), drawn(4, seed=2)
COTANGENT, SQUARES = drawn(2, 4, 6, 6, seed=3), drawn(2, 5, 5, seed=4)
CALLS = {
    aten.convolution.default: ((MAPS, KERNELS, BIAS, *HOW), {}),
    aten.convolution_backward.default: ((COTANGENT, MAPS, KERNELS, [4], *HOW, [True] * 3), {}),
    aten.mm.default: ((SQUARES[0], SQUARES[1]), {}),
    aten.addmm.default: ((SQUARES[0, 0], SQUARES[0], SQUARES[1]), {"alpha": 0.5}),
    aten.bmm.default: ((SQUARES, SQUARES), {}),
    aten.baddbmm.default: ((SQUARES, SQUARES, SQUARES), {"beta": 2}),
}


@pytest.mark.parametrize("lowering", wide.LOWERINGS, ids=lambda lowering: lowering.name)
def test_the_result_is_that_of_exact_products_rounded_once(lowering):
    arguments, options = CALLS[lowering.operation]
    exact = lowering.operation(*tree.map(in_float64, arguments), **options)
    assert lowering.applies(*arguments, **options)
    results = lowering.rewrite(*arguments, **options)
    pairs = zip(tree.leaves(results), tree.leaves(exact), strict=True)
    for actual, expected in pairs:
        assert actual.dtype is torch.bfloat16
        largest = float(expected.abs().max())
        torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-6 * largest)


def in_float64(leaf):
    return leaf.double() if isinstance(leaf, torch.Tensor) else leaf


@pytest.mark.parametrize("lowering", wide.LOWERINGS, ids=lambda lowering: lowering.name)
def test_the_rule_says_no(lowering, monkeypatch):
    arguments, _ = CALLS[lowering.operation]

    def like(leaf, how):
        return leaf.to(how) if isinstance(leaf, torch.Tensor) else leaf

    for how in (torch.float32, torch.float64, torch.float16, "meta"):
        assert not lowering.applies(*tree.map(lambda leaf, how=how: like(leaf, how), arguments))
    monkeypatch.setattr(wide, "has_bfloat16", lambda: True)
    assert not lowering.applies(*arguments)


NET = funcnets.sequential(
    conv=layers.conv2d(4, 3, padding=1),
    norm=layers.batch_norm(),
    tanh=layers.tanh(),
    flat=layers.flatten(),
    fc=layers.linear(3),
)
IMAGES, LABELS = drawn(4, 2, 6, 6), torch.arange(4) % 3


def loss(params, state, x):
    logits, _ = NET.apply(params, state, x, train=len(x) > 1)
    return losses.cross_entropy(logits.float(), LABELS[: len(x)])


def test_under_second_derivatives_and_vmap():
    params, state = NET.init(random.key(0), IMAGES)

    def product(params, x):
        gradient = torch.func.grad(loss)
        return torch.func.jvp(lambda p: gradient(p, state, x), (params,), (params,))[1]

    def each(params, x):
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0))(params, state, x)

    exactly = tree.map(in_float64, params)
    for function, x in ((product, IMAGES), (each, IMAGES[:, None])):
        jitted = funcnets.jit(function, backend="graph")
        fired = jitted.trace(params, x).fired
        assert any(name.startswith("wide.") for name in fired)
        actual, expected = jitted(params, x), function(exactly, x.double())
        pairs = zip(tree.leaves(actual), tree.leaves(expected), strict=True)
        distance = optim.global_norm([a.double() - b for a, b in pairs])
        assert distance < 2**-4 * optim.global_norm(tree.leaves(expected))


def test_a_step_in_bfloat16_multiplies_in_float32_by_the_lowerings_of_float32():
    net, _ = models.get("lenet_bn")
    x = random.uniform(random.key(1), (128, 1, 28, 28))
    optimizer = optim.sgd(0.1)
    train_state = train.create(net, optimizer, random.key(0), x)
    batch = (x, torch.arange(128) % 10)
    step = train.make_train_step(net, optimizer, policy=POLICIES["bfloat16"])
    jitted = funcnets.jit(step, backend="graph")
    traced = jitted.trace(train_state, batch)
    assert {"wide.convolution", "wide.addmm", "wide.mm", "few.forward"} <= traced.fired.keys()
    plain = funcnets.jit(step, backend="graph", lowerings=None)
    after, expected = jitted(train_state, batch), plain(train_state, batch)
    assert float(after[1]["loss"]) == pytest.approx(float(expected[1]["loss"]), rel=2**-7)
