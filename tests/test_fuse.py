"""Fewer passes over a map give the same numbers, where the rules match and where they don't."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import layers, models, precision, random, tree
from funcnets.compiler import DEFAULT
from funcnets.compiler.kernels import build
from funcnets.compiler.kernels import moments as moments_kernel
from funcnets.compiler.lowerings import moments

pytestmark = pytest.mark.usefixtures("verified")

aten = torch.ops.aten
formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


@st.composite
def maps(draw):
    """A map (N, C, H, W) in any format, or rows (N, C), far from a mean of 0."""
    shape = [draw(st.integers(2, 4)), draw(st.integers(1, 9))]
    if images := draw(st.booleans()):
        shape += [draw(st.integers(1, 5)), draw(st.integers(1, 5))]
    x = 3 + random.normal(random.key(draw(st.integers(0, 999))), tuple(shape), torch.float64)
    return x.to(memory_format=draw(formats)) if images else x


def traced(function, *arguments):
    """What a function gives as it is and as a graph, and how often each rule took part."""
    jitted = funcnets.jit(function, backend="graph")
    before = [argument.clone() for argument in arguments]
    actual, expected = jitted(*arguments), function(*arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
    fired = jitted.trace(*arguments).fired
    return {name.removeprefix("fusion."): times for name, times in fired.items()}


@pytest.mark.skipif(not build.is_available(), reason="needs a compiler")
@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda y: y.relu(), 1),
        (lambda y: y.relu().relu(), 2),
        (lambda y: (y.relu(), 2 * y), None),  # which reads it too
        (lambda y: (2 * y).relu(), None),
    ],
)
def test_rectified(function, times):
    """A ReLU is part of a convolution by tiles, and lets pass what is no number."""
    x = random.normal(random.key(0), (40, 96, 12, 12), torch.float64)
    x[1, 5, 3, 4] = torch.nan
    weight = random.normal(random.key(1), (96, 96, 3, 3), torch.float64)
    convolved = partial(torch.conv2d, weight=weight, bias=weight[:, 0, 0, 0], padding=1)
    jitted = funcnets.jit(lambda x: function(convolved(x)), backend="graph")
    actual, expected = jitted(x), function(convolved(x))
    for a, e in zip(*map(tree.leaves, (actual, expected)), strict=True):
        spread = a.isnan().any(1, keepdim=True).expand_as(a)
        assert (a.isnan() | ~e.isnan()).all()
        assert spread.sum() < a.numel() / 4
        torch.testing.assert_close(a[~spread], e[~spread], rtol=1e-9, atol=1e-9)
    assert jitted.trace(x).fired["winograd.forward"] == 1
    assert jitted.trace(x).fired.get("fusion.rectified") == times


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6}


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape", [(3, 5, 4, 4), (2, 1, 9, 7), (300, 6, 24, 24), (40, 103, 8, 9), (70, 33, 1, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moments_are_exact(shape, dtype, memory_format, compiler, monkeypatch):
    """To the type's last place, by C++ and without it."""
    if not compiler:
        monkeypatch.setattr(build, "is_available", lambda: False)
    x = 3 + random.normal(random.key(0), shape, dtype)
    expected = aten.var_mean.correction(x.double(), [0, 2, 3], correction=0)
    for actual, exact in zip(
        moments.var_mean(x.to(memory_format=memory_format)), expected, strict=True
    ):
        is_rough = not compiler and memory_format is torch.channels_last  # ATen's sums of rows
        tolerance = TOLERANCES[dtype] * (100 if is_rough else 1)
        torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 5, 2, 4), (3, 5, 4, 4), (30, 103, 8, 9), (300, 40)])
def test_sums_over_channels(shape, dtype, memory_format):
    """Of maps in bfloat16 in float32, the sum that is one in bfloat16 rounded once."""
    x, grad = (1 + random.normal(random.key(i), shape).to(dtype) for i in (0, 1))
    dims = [0, *range(2, len(shape))]
    if len(shape) == 4:
        x, grad = (each.to(memory_format=memory_format) for each in (x, grad))
    products, sums = moments_kernel.channel_sums(grad, x, None)
    exact = [each.sum(dims) for each in (grad.double() * x.double(), grad.double())]
    tolerance = TOLERANCES[dtype]
    for actual, expected in zip((products, sums), exact, strict=True):
        assert actual.dtype == (torch.float32 if dtype is torch.bfloat16 else dtype)
        torch.testing.assert_close(
            actual.double(), expected, rtol=10 * tolerance, atol=100 * tolerance
        )
    assert moments.is_bfloat16_sum(grad, dims) is (dtype is torch.bfloat16)
    if dtype is torch.bfloat16:
        assert torch.equal(moments_kernel.channel_sum(grad), sums.bfloat16())
        mean, variance = moments_kernel.channel_moments(x)
        expected = aten.var_mean.correction(x.double(), dims, correction=0)
        for actual, other in zip((variance, mean), expected, strict=True):
            torch.testing.assert_close(actual.double(), other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_statistics_are_of_the_map_in_bfloat16(memory_format):
    """And derivatives of batch norm don't keep it in float32."""
    x = 3 + random.normal(random.key(0), (4, 40, 6, 6)).to(memory_format=memory_format)
    net = funcnets.sequential(bn=layers.batch_norm(), relu=layers.relu())
    net = precision.cast(net, precision.POLICIES["bfloat16"])
    params, state = net.init(random.key(0), x)

    def gradient(params, x):
        def loss(params, x):
            y, new = net.apply(params, state, x, train=True)
            return (y * torch.cos(9 * x)).sum(), new

        return torch.func.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    expected = tree.leaves(gradient(params, x))
    for backend in ("graph", "native"):
        jitted = funcnets.jit(gradient, backend=backend)
        for actual, other in zip(tree.leaves(jitted(params, x)), expected, strict=True):
            assert (actual - other).abs().max() <= 8e-3 * other.abs().max()
        fired = jitted.trace(params, x).fired
        assert fired["fusion.as_stored"] == 2
        targets = [node.target for node in jitted.trace(params, x).graph.graph.nodes]
        assert {moments_kernel.CHANNEL_MOMENTS, moments_kernel.CHANNEL_SUMS} <= set(targets)


@settings(max_examples=10)
@given(maps())
def test_batch_norm_and_its_derivative(x):
    net = layers.batch_norm()
    params, state = net.init(random.key(0), x)
    cotangent = torch.cos(9 * x)  # any numbers, in the format of x

    def gradient(weight, bias, x):
        def loss(weight, bias, x):
            params = {"weight": weight, "bias": bias}
            result, new = net.apply(params, state, x, train=True)
            return (result.sin() * cotangent).sum(), new

        return torch.func.grad(loss, argnums=(0, 1, 2), has_aux=True)(weight, bias, x)

    fired = traced(gradient, params["weight"] + 0.5, params["bias"] + 0.5, x)
    assert {"moments.var_mean", "channel_sums", "deviation"} <= set(fired)
    # The map of one channel may have strides that no operation keeps; a rule keeps all strides.
    assert "multiply_add" in fired or cotangent.stride() != x.stride()


def test_each_batch_norm_of_a_network_is_fused():
    net = models.densenet(layers=[2, 2], growth=3, stem_channels=4)
    x = random.normal(random.key(1), (3, 1, 16, 16), torch.float64)
    params, state = net.init(random.key(0), x)

    def loss(params, x):
        return net.apply(params, state, x, train=True)[0].square().sum()

    gradient = torch.func.grad(loss)
    jitted = funcnets.jit(gradient, backend="graph")
    fired = jitted.trace(params, x).fired
    torch.testing.assert_close(jitted(params, x), gradient(params, x), rtol=1e-9, atol=1e-9)
    norms = sum("running_mean" in name for name in tree.flatten_named(state))
    assert (
        fired["moments.var_mean"]
        == fired["fusion.channel_sums"]
        == fired["fusion.deviation"]
        == norms
    )


def expanded(c, x):
    return c.expand(x.shape)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y, c: x + x * y, {"multiply_add": 1}),
        (lambda x, y, c: x * y + c, {"multiply_add": 1}),
        (lambda x, y, c: x + y * 0.5, {"multiply_add": 1}),
        (lambda x, y, c: x + c * c, {}),
        (lambda x, y, c: (x * y + c, x * y), {"multiply_add": 1}),
        (lambda x, y, c: (p := x * y) + c + p, {}),
        (lambda x, y, c: torch.add(x, x * y, alpha=2), {}),
        (lambda x, y, c: x + (x * y).float().double(), {}),
        (lambda x, y, c: x.long() + x.long() * y.long(), {}),
        (lambda x, y, c: aten.mul.Scalar(x, 1), {}),
        (lambda x, y, c: aten.mul.Scalar(x, 1).exp(), {"times_one": 1}),
        (lambda x, y, c: aten.mul.Scalar(x.long(), 1.0).exp(), {}),
        (lambda x, y, c: aten.mul.Scalar(x, 2).exp(), {}),
        (lambda x, y, c: ((x * y).sum((0, 2, 3)), x.sum((0, 2, 3))), {"channel_sums": 1}),
        (lambda x, y, c: (x.sum((0, 2, 3)), (x * y).sum((0, 2, 3))), {}),
        (lambda x, y, c: ((x * y).sum((0, 2, 3)), x.sum((0, 2))), {}),
        (lambda x, y, c: ((x * y).sum((0, 2)), x.sum((0, 2))), {}),
        (lambda x, y, c: ((p := x * y).sum((0, 2, 3)), x.sum((0, 2, 3)), p), {}),
        (lambda x, y, c: ((x * c).sum((0, 2, 3)), x.sum((0, 2, 3))), {}),
        (lambda x, y, c: c * (x - c) + aten.div.Scalar(expanded(c, x), 3), {"deviation": 1}),
        (lambda x, y, c: c * (x - c) + aten.div.Scalar(x, 3), {"multiply_add": 1}),
        (lambda x, y, c: x * (x - c) + aten.div.Scalar(expanded(c, x), 3), {"deviation": 1}),
    ],
)
def test_rules_one_by_one(function, expected):
    shape = (2, 3, 4, 4)
    x, y = (random.normal(random.key(seed), shape, torch.float64) for seed in (1, 2))
    assert traced(function, x, y, torch.arange(3.0, dtype=torch.float64)[:, None, None]) == expected


def test_nothing_is_fused_without_lowerings():
    net = layers.batch_norm()
    x = random.normal(random.key(1), (4, 3), torch.float64)
    params, state = net.init(random.key(0), x)
    gradient = torch.func.grad(lambda p: net.apply(p, state, x, train=True)[0].square().sum())
    for backend in ("inductor", "graph"):
        fired = [
            funcnets.jit(gradient, backend=backend, lowerings=lowerings).trace(params).fired
            for lowerings in (None, DEFAULT)
        ]
        assert fired[0] == {}
        assert fired[1]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 5, 2, 4), (30, 40, 8, 9), (300, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scaling_by_channel(shape, dtype, memory_format):
    x = random.normal(random.key(0), shape).to(dtype)
    if len(shape) == 4:
        x = x.to(memory_format=memory_format)
    wide = torch.float32 if dtype is torch.bfloat16 else dtype
    scale, shift = (random.normal(random.key(i), (shape[1],), wide) for i in (1, 2))
    column = (-1, *[1] * (len(shape) - 2))
    product = x.double() * scale.double().view(column)
    for plus, expected in ((None, product), (shift, product + shift.double().view(column))):
        actual = moments_kernel.scale_and_shift(x, scale, plus)
        assert actual.dtype == dtype
        assert actual.stride() == x.stride()
        rounding = 2**-8 if dtype is torch.bfloat16 else 1e-14
        torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=1e-6)


SHIFT = torch.arange(6.0)[:, None, None]


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda x, c: torch.addcmul(c, x.float(), c).bfloat16(), 1),
        (lambda x, c: torch.addcmul(c, c, x.float()).bfloat16(), 1),
        (lambda x, c: (x.float() * c).bfloat16(), 1),
        (lambda x, c: (c[None] * x.float()).bfloat16(), 1),
        (lambda x, c: (x.float() * c[0]).bfloat16(), 0),
        (lambda x, c: (x.float() * c[:1].expand(6, 1, 1)).bfloat16(), 0),
        (lambda x, c: (x.float() * x.float()).bfloat16(), 0),
        (lambda x, c: (x.float() * c.transpose(0, 2)).bfloat16(), 0),
        (lambda x, c: (x.float() * c).half(), 0),
        (lambda x, c: (y := x.float() * c).bfloat16() + y, 0),
        (lambda x, c: torch.addcmul(x.float(), x.float(), c).bfloat16(), 0),
        (lambda x, c: torch.addcmul(c, x.float(), c, value=2).bfloat16(), 0),
        (lambda x, c: (x.double() * c.double()).bfloat16(), 0),
    ],
)
def test_graphs_without_loops_scale_bfloat16_as_it_is(function, times):
    x = random.normal(random.key(0), (2, 6, 4, 6)).bfloat16()
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.to(memory_format=layout)
        jitted = funcnets.jit(function, backend="graph")
        assert torch.equal(jitted(given, SHIFT), function(given, SHIFT))
        (executable,) = jitted._executables.values()
        assert executable.trace.fired.get("fusion.scaled", 0) == times
        assert "fusion.scaled" not in funcnets.jit(function).trace(given, SHIFT).fired


def test_without_a_compiler_nothing_is_scaled_so(monkeypatch):
    monkeypatch.setattr(build, "is_available", lambda: False)
    jitted = funcnets.jit(lambda x: (x.float() * SHIFT).bfloat16(), backend="graph")
    x = random.normal(random.key(0), (2, 6, 4, 6)).bfloat16()
    assert torch.equal(jitted(x), (x.float() * SHIFT).bfloat16())


def test_the_derivative_reads_the_mean_of_var_mean():
    """As on a GPU, where ATen's operation gives the statistics: no map is averaged again."""
    net = layers.batch_norm()
    x = random.normal(random.key(0), (4, 3, 5, 5))
    params, state = net.init(random.key(1), x)

    def loss(params, x):
        return net.apply(params, state, x, train=True)[0].sin().sum()

    kept = [each for each in DEFAULT if each is not moments.VAR_MEAN]
    jitted = funcnets.jit(torch.func.grad(loss, (0, 1)), backend="graph", lowerings=kept)
    graph = jitted.trace(params, x).graph.graph
    assert graph.find_nodes(op="call_function", target=aten.var_mean.correction)
    assert not graph.find_nodes(op="call_function", target=aten.mean.dim)
    torch.testing.assert_close(jitted(params, x), torch.func.grad(loss, (0, 1))(params, x))


def relative(a, b, c):
    return 1 / (a * b - c)


@pytest.mark.parametrize("backend", ["graph", "native"])
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, c: (a * b - c).sqrt(),
        lambda a, b, c: (a * b + -c).sqrt(),
        lambda a, b, c: (c - b * a).sqrt(),
        lambda a, b, c: torch.add(-c, a * b).abs().log(),
        lambda a, b, c: torch.where(a * b + -c > 0, a, b),
        lambda a, b, c: (a * b + -c).view(-1, 1).neg().square().rsqrt(),
        lambda a, b, c: (a * b + -c + 1e-30) ** -0.5,
        relative,
    ],
)
def test_equal_products_cancel_exactly(function, backend):
    """A multiply-add that rounds once would leave the rounding error of the product, or NaN."""
    a, b = (torch.rand(1000, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    c, negative = a * b, -(a * b)  # what the graph doesn't know to be products
    for call in (function, lambda a, b, c: function(a, b, -c)):
        last = c if call is function else negative
        expected = call(a, b, last)
        actual = funcnets.jit(call, backend=backend)(a, b, last)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_a_sum_that_is_only_added_to_is_still_fused():
    x, y = (torch.rand(8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    fired = funcnets.jit(lambda x, y: torch.relu(x + x * y) * 2).trace(x, y).fired
    assert fired["fusion.multiply_add"] == 1
    fired = funcnets.jit(lambda x, y: torch.relu(x + x * y).sqrt()).trace(x, y).fired
    assert "fusion.multiply_add" not in fired
