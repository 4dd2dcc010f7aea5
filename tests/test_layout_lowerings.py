"""Rules for memory formats, and what a training sees of them: a state keeps its layout."""

import math

import pytest
import torch
from tensors import numbers

import funcnets
from funcnets import checkpoint, layers, optim, random, train, tree
from funcnets.compiler import DEFAULT
from funcnets.compiler.kernels import build, max_pool
from funcnets.compiler.lowerings import layout

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("pixels", "dtype", "expected"),
    [
        # True for a matrix product: of a weight's gradient, of 1×1 kernels; AVX2, AVX-512.
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


def training(lowerings, *, steps, train_state=None, donate=True):
    """Train a small network with convolutions and max pools under jit, in float64."""
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
    x = numbers(6, 1, 20, 20)
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


def test_equal_conversions_are_in_the_graph_once():
    net = funcnets.sequential(first=layers.conv2d(8, 3), second=layers.conv2d(8, 3))
    x = numbers(2, 8, 20, 20)
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


def test_a_max_pool_begins_the_kernel_of_its_fusion(monkeypatch):
    """While the trace goes on; the lowering itself has no kernel."""
    begun = []
    monkeypatch.setattr(build, "_library", lambda kernel, *key: begun.append((kernel, *key)))
    prepare, x = layout.MAX_POOL_FORWARD.prepare, torch.ones(2, 3, 6, 6)
    prepare(x, [3, 3], [2, 2], [1, 1])
    assert begun == [(max_pool.KERNEL, torch.float32, ())]
    prepare(x, [17, 17], [2, 2], [8, 8])  # which the kernel doesn't support
    assert len(begun) == 1
