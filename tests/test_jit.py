"""`jit`: what it computes, when it traces anew, what it refuses, and what it does with memory."""

import subprocess
import sys

import pytest
import torch
from torch.func import grad, jvp, vmap

import funcnets
from funcnets import optim, random, train, tree
from funcnets.jit import CompileError, TraceError

jit = funcnets.jit


def counted(function):
    """The function, and a list that grows by one at each of its runs."""
    runs = []

    def run(*args, **kwargs):
        runs.append(None)
        return function(*args, **kwargs)

    return run, runs


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(4),
        torch.ones(3, dtype=torch.float64),
        torch.ones(1, 3),
        torch.ones(6)[::2],
    ],
    ids=["shape", "dtype", "rank", "strides"],
)
def test_each_kind_of_argument_is_traced_once(other):
    function, runs = counted(lambda x: x * 2)
    jitted = jit(function, backend="graph")
    for x in (torch.ones(3), torch.zeros(3), other, other + 0 * other, torch.ones(3)):
        x = x if x.shape != other.shape or x.dtype != other.dtype else other
        torch.testing.assert_close(jitted(x), x * 2)
    assert len(runs) <= 3
    jitted(torch.ones(3))
    jitted(other)
    assert len(runs) == 2


def test_structure_and_memory_format_are_part_of_the_kind():
    function, runs = counted(lambda values: tree.map(torch.neg, values))
    jitted = jit(function, backend="graph")
    x = torch.rand(2, 3, 4, 4)
    jitted({"a": x})
    jitted({"a": x})
    jitted({"b": x})
    jitted({"a": x.to(memory_format=torch.channels_last)})
    assert len(runs) == 3


def test_static_arguments():
    function, runs = counted(lambda x, power: x**power)
    jitted = jit(function, static_argnums=1, backend="graph")
    x = torch.arange(3.0)
    torch.testing.assert_close(jitted(x, 2), x**2)
    torch.testing.assert_close(jitted(x, 3), x**3)
    torch.testing.assert_close(jitted(x, 2), x**2)
    assert len(runs) == 2


def test_keywords_and_none_are_structure():
    def function(x, *, scale, shift):
        return {"y": x * scale, "none": None} if shift is None else {"y": x * scale + shift}

    jitted = jit(function, backend="graph")
    one = torch.ones(2)
    result = jitted(one, scale=2 * one, shift=None)
    assert result["none"] is None
    torch.testing.assert_close(result["y"], 2 * one)
    torch.testing.assert_close(jitted(one, scale=one, shift=one)["y"], 2 * one)


def test_a_trace_shows_the_graph_and_computes_nothing():
    trace = jit(lambda x: torch.sin(x).sum()).trace(torch.ones(3))
    assert "aten.sin" in str(trace)
    assert "aten.sum" in str(trace)


CAPTURED = torch.ones(3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x if x.sum() > 0 else -x, r"test_jit\.py.*use torch.where"),
        (lambda x: x * x.sum().item(), r"keep \.item\(\) outside"),
        (lambda x: {"a": {"b": 1.5}}, r"leaf `a\.b` is 1\.5"),
        (lambda x: x.add_(1), "writes to an argument"),
        (lambda x: x.view(-1)[1:].mul_(2), "writes to an argument"),
        (lambda x: torch.rand_like(x), "hidden generator"),
    ],
    ids=["branch", "item", "leaf", "write", "write through a view", "generator"],
)
def test_what_is_no_pure_function_is_refused(function, message):
    with pytest.raises(TraceError, match=message):
        jit(function, backend="graph")(torch.ones(3))


def test_numbers_are_refused_by_name():
    with pytest.raises(TraceError, match=r"argument 0\.rate is 0\.5.*static_argnums"):
        jit(lambda options: options["x"], backend="graph")({"x": torch.ones(2), "rate": 0.5})


def test_a_captured_tensor_that_changes_is_noticed():
    captured = torch.ones(3)
    jitted = jit(lambda x: x * captured, backend="graph")
    torch.testing.assert_close(jitted(torch.ones(3)), torch.ones(3))
    captured.add_(1)
    with pytest.raises(TraceError, match="pass it as an argument"):
        jitted(torch.ones(3))


BREAK = """
import torch, funcnets
from torch.func import grad, jvp, vmap
def bad(x):
    return vmap(grad(lambda y: y if y > 0 else -y))(x)
try:
    funcnets.jit(bad, backend="graph")(torch.ones(3))
except TypeError as error:
    assert "torch.where" in str(error) or "data-dependent" in str(error), error
except RuntimeError as error:
    assert "vmap" in str(error), error
else:
    raise SystemExit("not refused")
x = torch.arange(3.0)
assert torch.equal(grad(lambda y: (y**2).sum())(x), 2 * x)
assert torch.equal(vmap(grad(lambda y: y**2))(x), 2 * x)
assert torch.equal(jvp(torch.square, (x,), (torch.ones(3),))[1], 2 * x)
assert torch.equal(funcnets.jit(torch.square, backend="graph")(x), x**2)
"""


def test_a_failure_inside_transforms_leaves_the_process_healthy():
    result = subprocess.run([sys.executable, "-c", BREAK], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_donated_memory_takes_the_new_values():
    jitted = jit(lambda a, b: (a + b, a.sum()), donate_argnums=0, backend="graph")
    a, b = torch.ones(3), torch.arange(3.0)
    memory = a.data_ptr()
    new, total = jitted(a, b)
    assert new.data_ptr() == memory
    torch.testing.assert_close(new, torch.tensor([1.0, 2.0, 3.0]))
    assert total == 3


def test_donated_arguments_can_change_places():
    jitted = jit(lambda a, b: (b, a), donate_argnums=(0, 1), backend="graph")
    first, second = jitted(torch.zeros(3), torch.ones(3))
    assert (first == 1).all()
    assert (second == 0).all()


def test_views_of_donated_arguments_are_read_before_they_are_written():
    def function(a):
        return a * 2, a[1:], a.flip(0)[:2]

    a = torch.arange(4.0)
    expected = function(a.clone())
    actual = jit(function, donate_argnums=0, backend="graph")(a)
    torch.testing.assert_close(actual, expected)


def test_donation_leaves_the_rest_alone():
    def function(a, b):
        return a[0] + b

    a, b = {0: torch.ones(2)}, torch.ones(2)
    memory = b.clone()
    jit(function, donate_argnums=0, backend="graph")(a, b)
    torch.testing.assert_close(b, memory)
    unmatched = torch.ones(5)
    jit(lambda x: x.sum(), donate_argnums=0, backend="graph")(unmatched)
    assert (unmatched == 1).all()


def test_a_tensor_is_donated_once():
    jitted = jit(lambda a, b: (a + b, b), donate_argnums=0, backend="graph")
    x = torch.ones(3)
    with pytest.raises(ValueError, match="shares its memory"):
        jitted(x, x)


def test_inside_transforms_it_is_the_function():
    jitted = jit(lambda x: (x**3).sum(), backend="graph")
    x = torch.arange(3.0)
    torch.testing.assert_close(grad(jitted)(x), 3 * x**2)
    torch.testing.assert_close(vmap(jitted)(x[:, None]), x**3)
    torch.testing.assert_close(jit(grad(jitted), backend="graph")(x), 3 * x**2)


@pytest.mark.parametrize(
    "options",
    [{"backend": "cuda"}, {"donate_argnums": -1}, {"donate_argnums": 0, "static_argnums": 0}],
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match="jit:"):
        jit(torch.neg, **options)


def test_a_failing_compiler_is_told_with_a_way_on(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda graph, **options: fail)
    with pytest.raises(CompileError, match=r'no C\+\+ compiler.*backend="graph"'):
        jit(torch.neg)(torch.ones(3))


def test_compiled_draws_are_the_eager_ones():
    def draw(key):
        return (
            random.uniform(key, (64,)),
            random.bernoulli(key, 0.3, (64,)),
            random.permutation(key, 64),
            random.split(random.fold_in(key, 7), 3),
        )

    for actual, expected in zip(jit(draw)(random.key(3)), draw(random.key(3)), strict=True):
        assert torch.equal(actual, expected)


def training():
    """A small net with batch norm and dropout, its step, and arguments for it."""
    net = funcnets.sequential(
        conv=funcnets.layers.conv2d(3, 3, padding=1),
        bn=funcnets.layers.batch_norm(),
        relu=funcnets.layers.relu(),
        dropout=funcnets.layers.dropout(0.5),
        pool=funcnets.layers.global_avg_pool(),
        flatten=funcnets.layers.flatten(),
        fc=funcnets.layers.linear(4),
    )
    optimizer = optim.sgd(0.1, momentum=0.9)
    x = random.normal(random.key(1), (6, 2, 5, 5), torch.float64)
    train_state = train.create(net, optimizer, random.key(0), x)
    return train.make_train_step(net, optimizer), train_state, (x, torch.arange(6) % 4)


@pytest.mark.parametrize("backend", ["graph", "inductor"])
@pytest.mark.parametrize("donate_argnums", [(), (0,)])
def test_a_training_step_is_the_eager_one(backend, donate_argnums):
    step, train_state, batch = training()
    jitted = jit(step, backend=backend, donate_argnums=donate_argnums)
    expected, actual = train_state, tree.map(torch.clone, train_state)
    for _ in range(3):
        expected, loss = step(expected, batch)
        actual, jitted_loss = jitted(actual, batch)
        torch.testing.assert_close(jitted_loss, loss)
    for ours, theirs in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_curvature_and_members_under_jit():
    step, train_state, batch = training()

    def loss(params):
        return step(train_state._replace(params=params), batch)[1]["loss"]

    params = train_state.params

    def product(params):
        return jvp(grad(loss), (params,), (params,))[1]

    def members(params):
        both = tree.map(lambda leaf: torch.stack([leaf, 2 * leaf]), params)
        return vmap(grad(loss))(both)

    for function in (product, members):
        torch.testing.assert_close(jit(function, backend="graph")(params), function(params))
