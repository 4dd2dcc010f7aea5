"""Products of bfloat16 in float32 are those of ATen, rounded once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import layers, losses, models, optim, random, train, tree
from funcnets.compiler.lowerings import bfloat16
from funcnets.precision import POLICIES

aten = torch.ops.aten


@pytest.fixture(autouse=True, scope="module")
def _without_instructions():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bfloat16, "has_bfloat16", lambda: False)
        yield


def drawn(*shape, seed=0, dtype=torch.bfloat16):
    return random.normal(random.key(seed), shape).to(dtype)


sizes = st.integers(1, 5)


@st.composite
def convolutions(draw):
    """What convolution is given, and the shape of its result."""
    kernel, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    side = draw(st.integers(max(1, kernel - 2 * padding), 6))
    batch, inputs, outputs, stride = (draw(sizes) for _ in range(4))
    x = drawn(batch, inputs, side, side + 1)
    weight, bias = drawn(outputs, inputs, kernel, kernel, seed=1), drawn(outputs, seed=2)
    how = ([stride, 1], [padding, padding], [1, 1], False, [0, 0], 1)
    return (x, weight, draw(st.sampled_from([bias, None])), *how), {}


@st.composite
def backward_convolutions(draw):
    (x, weight, _, *how), _ = draw(convolutions())
    shape = aten.convolution(x, weight, None, *how).shape
    sizes = draw(st.sampled_from([[len(weight)], None]))
    return (drawn(*shape, seed=3), x, weight, sizes, *how, [True, True, sizes is not None]), {}


@st.composite
def products(draw, *, batched, added):
    rows, between, columns = (draw(sizes) for _ in range(3))
    batch = [draw(sizes)] if batched else []
    factors = drawn(*batch, rows, between), drawn(*batch, between, columns, seed=1)
    if not added:
        return factors, {}
    scale = {name: draw(st.sampled_from([1, 0.5, -2])) for name in ("alpha", "beta")}
    return (drawn(*batch, rows, columns, seed=2), *factors), scale


CALLS = {
    aten.convolution.default: convolutions(),
    aten.convolution_backward.default: backward_convolutions(),
    aten.mm.default: products(batched=False, added=False),
    aten.addmm.default: products(batched=False, added=True),
    aten.bmm.default: products(batched=True, added=False),
    aten.baddbmm.default: products(batched=True, added=True),
}
LOWERINGS = pytest.mark.parametrize("lowering", bfloat16.LOWERINGS, ids=lambda each: each.name)


@LOWERINGS
@given(data=st.data())
@settings(max_examples=25)
def test_the_result_is_that_of_exact_products_rounded_once(lowering, data):
    arguments, options = data.draw(CALLS[lowering.operation])
    exact = lowering.operation(*tree.map(in_float64, arguments), **options)
    results = lowering.rewrite(*arguments, **options)
    pairs = zip(tree.leaves(results), tree.leaves(exact), strict=True)
    for actual, expected in pairs:
        assert (actual is None) == (expected is None)
        if actual is not None:
            assert actual.dtype is torch.bfloat16
            largest = float(expected.abs().max())
            torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-6 * largest)


def in_float64(leaf):
    return leaf.double() if isinstance(leaf, torch.Tensor) else leaf


@LOWERINGS
@given(data=st.data())
@settings(max_examples=5)
def test_the_rule_says_yes_to_bfloat16(lowering, data):
    arguments, options = data.draw(CALLS[lowering.operation])
    assert lowering.applies(*arguments, **options)


@LOWERINGS
@given(data=st.data())
@settings(max_examples=5)
def test_the_rule_says_no(lowering, data):
    arguments, options = data.draw(CALLS[lowering.operation])

    def like(leaf, how):
        return leaf.to(how) if isinstance(leaf, torch.Tensor) else leaf

    for how in (torch.float32, torch.float64, torch.float16, "meta"):
        others = tree.map(lambda leaf, how=how: like(leaf, how), arguments)
        assert not lowering.applies(*others, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bfloat16, "has_bfloat16", lambda: True)
        assert not lowering.applies(*arguments, **options)


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
        assert any(name.startswith("bfloat16.") for name in fired)
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
    assert {
        "bfloat16.convolution",
        "bfloat16.addmm",
        "bfloat16.mm",
        "few_channels.forward",
    } <= traced.fired.keys()
    plain = funcnets.jit(step, backend="graph", lowerings=None)
    after, expected = jitted(train_state, batch), plain(train_state, batch)
    assert float(after[1]["loss"]) == pytest.approx(float(expected[1]["loss"]), rel=2**-7)
