"""Lowerings that choose a memory format give the same numbers, and leave a state's layout alone."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import checkpoint, layers, optim, random, train, tree
from funcnets.compiler import DEFAULT
from funcnets.compiler.lowerings import layout

aten = torch.ops.aten
REST = ([1, 1], False, [0, 0], 1)
FORMATS = (torch.contiguous_format, torch.channels_last)
pairs = st.tuples(st.integers(1, 2), st.integers(1, 2)).map(list)
formats = st.sampled_from(FORMATS)


def draw_tensor(draw, *shape):
    values = random.normal(random.key(draw(st.integers(0, 1000))), shape, torch.float64)
    return values.to(memory_format=draw(formats)) if len(shape) == 4 else values


@st.composite
def cases(draw):
    """Input, weight, bias, stride and padding of a convolution, in any memory formats."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (4, 4)]))
    stride, padding = draw(pairs), draw(st.sampled_from([[0, 0], [1, 1], [0, 1]]))
    sides = [draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(kernel, padding, strict=True)]
    batch, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    inputs = draw(st.sampled_from([1, 2, 8]))
    x = draw_tensor(draw, batch, inputs, *sides)
    weight = draw_tensor(draw, outputs, inputs, *kernel)
    return x, weight, draw_tensor(draw, outputs), stride, padding


@pytest.fixture(params=[False, True], ids=["AVX2", "AVX-512"])
def _vectors(request, monkeypatch):
    """The rules of one kind of processor or the other."""
    monkeypatch.setattr(layout, "has_avx512", lambda: request.param)


# What the fixture sets holds for all examples.
of_each_processor = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("_vectors")
@of_each_processor
@given(cases(), st.booleans())
def test_forward(case, with_bias):
    x, weight, bias, stride, padding = case
    arguments = (x, weight, bias if with_bias else None, stride, padding, *REST)
    torch.testing.assert_close(layout.forward(*arguments), aten.convolution(*arguments))


@pytest.mark.usefixtures("_vectors")
@of_each_processor
@given(cases(), st.tuples(st.booleans(), st.booleans(), st.booleans()), formats)
def test_backward(case, mask, memory_format):
    x, weight, bias, stride, padding = case
    output = aten.convolution(x, weight, bias, stride, padding, *REST)
    cotangent = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).view(output.shape)
    cotangent = cotangent.to(memory_format=memory_format)
    arguments = (cotangent, x, weight, list(bias.shape), stride, padding, *REST, list(mask))
    results = layout.backward(*arguments)
    expected = aten.convolution_backward(*arguments)
    for actual, value, wanted in zip(results, expected, mask, strict=True):
        if wanted:
            torch.testing.assert_close(actual, value)
        else:
            assert actual is None
    if mask[1] and weight.stride() == torch.empty(weight.shape).stride():
        assert results[1].stride() == weight.stride()


@given(st.data(), formats)
def test_max_pooling(drawn, memory_format):
    x = draw_tensor(drawn.draw, 2, 3, 6, 7)
    how = ([3, 3], drawn.draw(pairs), [1, 1], [1, 1], drawn.draw(st.booleans()))
    expected, indices = aten.max_pool2d_with_indices(x, *how)
    actual, where = layout.max_pool_forward(x, *how)
    assert torch.equal(actual, expected)
    assert torch.equal(where, indices)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    grad = torch.cos(expected).to(memory_format=memory_format)
    gradients = (
        function(grad, x, *how, indices)
        for function in (layout.max_pool_backward, aten.max_pool2d_with_indices_backward)
    )
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("pixels", "dtype", "expected"),
    [
        # Whether a product stands for it: of a weight's gradient, of 1×1 kernels; by processor.
        (36, torch.float32, ((True, True), (False, False))),
        (16, torch.float32, ((True, True), (False, False))),
        (4, torch.float32, ((True, True), (True, True))),
        (16, torch.bfloat16, ((True, True), (True, True))),
        (36, torch.bfloat16, ((True, True), (False, False))),
        (49, torch.float32, ((False, True), (False, False))),
    ],
)
def test_products_are_for_small_maps(monkeypatch, pixels, dtype, expected):
    side, weight = [math.isqrt(pixels)] * 2, torch.empty(8, 8, 1, 1, dtype=dtype)
    for has_avx512, answers in zip((False, True), expected, strict=True):
        monkeypatch.setattr(layout, "has_avx512", lambda answer=has_avx512: answer)
        pointwise = layout.is_pointwise(weight, [1, 1], [0, 0], side)
        assert (layout.is_small(side, dtype), pointwise) == answers
        assert layout.is_pointwise(weight, [2, 1], [0, 0], side)
        assert not layout.is_pointwise(weight, [1, 1], [1, 0], side)


@pytest.mark.parametrize(
    "how",
    [
        ([1, 1], [1, 1], [1, 1], False, [0, 0], 2),
        ([1, 1], [1, 1], [2, 2], False, [0, 0], 1),
        ([1, 1], [1, 1], [1, 1], True, [0, 0], 1),
    ],
    ids=["groups", "dilation", "transposed"],
)
def test_the_rule_says_no(how):
    x, weight = torch.zeros(2, 4, 8, 8), torch.zeros(4, 4, 3, 3)
    assert layout.is_plain_convolution(x, weight, [1, 1], [1, 1], *REST)
    assert not layout.is_plain_convolution(x, weight, *how)
    assert not layout.is_plain_convolution(x.to("meta"), weight, [1, 1], [1, 1], *REST)


def training(lowerings, *, steps, train_state=None, donate=True):
    """A small network with all that is lowered here, trained under jit in float64."""
    net = funcnets.sequential(
        conv1=layers.conv2d(8, 5, stride=2, padding=2),
        bn=layers.batch_norm(),
        pool1=layers.max_pool(2),
        block=funcnets.residual(
            funcnets.sequential(
                conv1=layers.conv2d(8, 3, padding=1), relu=layers.relu(), conv2=layers.conv2d(8, 1)
            ),
        ),
        pool2=layers.max_pool(3, 1, 1),
        flatten=layers.flatten(),
        fc=layers.linear(10),
    )
    optimizer = optim.sgd(0.1, momentum=0.9, nesterov=True)
    x = random.normal(random.key(1), (6, 1, 20, 20), torch.float64)
    train_state = train_state or train.create(net, optimizer, random.key(0), x)
    step = funcnets.jit(
        train.make_train_step(net, optimizer),
        donate_argnums=0 if donate else (),
        backend="graph",
        lowerings=lowerings,
    )
    batch = (x, torch.arange(6))
    for _ in range(steps):
        train_state, _ = step(train_state, batch)
    evaluate = funcnets.jit(train.make_eval_step(net), backend="graph", lowerings=lowerings)
    return train_state, evaluate(train_state.params, train_state.state, batch), step, batch


def test_training_and_evaluation_equal_those_without():
    actual, measured, step, batch = training(DEFAULT, steps=4)
    expected, plain, *_ = training(None, steps=4)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(measured, plain, rtol=1e-9, atol=1e-11)
    fired = step.trace(actual, batch).fired
    assert {name: times for name, times in fired.items() if name.startswith("layout")} == {
        "layout.forward": 3,
        "layout.backward": 3,
        "layout.max_pool_forward": 2,
        "layout.max_pool_backward": 2,
    }


def test_a_donated_state_keeps_its_layout_and_memory():
    before, *_ = training(DEFAULT, steps=0)
    strides = tree.map(lambda leaf: torch.tensor(leaf.stride()), before)
    memory = [leaf.data_ptr() for leaf in tree.leaves(before)]
    after, *_ = training(DEFAULT, steps=3, train_state=before)
    torch.testing.assert_close(tree.map(lambda leaf: torch.tensor(leaf.stride()), after), strides)
    assert [leaf.data_ptr() for leaf in tree.leaves(after)] == memory


def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path):
    through, *_ = training(DEFAULT, steps=4)
    half, *_ = training(DEFAULT, steps=2)
    checkpoint.save(tmp_path / "half", half)
    loaded, _ = checkpoint.load(tmp_path / "half", half)
    resumed, *_ = training(DEFAULT, steps=2, train_state=loaded)
    pairs = zip(tree.leaves(resumed), tree.leaves(through), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_under_second_derivatives_and_vmap():
    net = funcnets.sequential(
        conv=layers.conv2d(3, 3, stride=2, padding=1),
        pool=layers.max_pool(2, 1),
        head=layers.conv2d(2, 1),
    )
    x = random.normal(random.key(1), (2, 2, 9, 9), torch.float64)
    params, _ = net.init(random.key(0), x)

    def loss(params, x):
        return net.apply(params, {}, x)[0].square().sum()

    def product(params, x):
        return torch.func.jvp(lambda p: torch.func.grad(loss)(p, x), (params,), (params,))[1]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    for function, value in ((product, x), (each, x[:, None])):
        jitted = funcnets.jit(function, backend="graph")
        torch.testing.assert_close(jitted(params, value), function(params, value))
        assert jitted.trace(params, value).fired


def test_what_is_prepared_twice_is_in_the_graph_once():
    net = funcnets.sequential(first=layers.conv2d(8, 3), second=layers.conv2d(8, 3))
    x = random.normal(random.key(1), (2, 8, 20, 20), torch.float64)
    params, _ = net.init(random.key(0), x)
    gradient = torch.func.grad(lambda params: net.apply(params, {}, x)[0].sum())
    graph = funcnets.jit(gradient).trace(params).graph.graph
    weight = params["second"]["weight"]
    uses = [
        node
        for node in graph.find_nodes(op="call_function", target=aten._to_copy.default)
        if node.args[0].op == "placeholder" and node.meta["val"].shape == weight.shape
    ]
    assert len(uses) == 2  # of each weight one, though the second is used twice
