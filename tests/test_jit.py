"""`jit`: what it computes, when it traces anew, and what it does with memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor import config as inductor_config
from torch.func import grad, jvp, vmap

import funcnets
from funcnets import optim, random, train, tree
from funcnets.compiler import CompileError, TraceError
from funcnets.compiler.executables import MANY_KINDS, MAX_KINDS

pytestmark = pytest.mark.usefixtures("verified")

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
    for x in (torch.ones(3), other, torch.zeros(3), other):
        torch.testing.assert_close(jitted(x), x * 2)
    assert len(runs) == 2


@pytest.mark.filterwarnings("ignore:jit")
def test_the_graphs_that_were_used_last_are_kept():
    function, runs = counted(lambda x, n: x * n)
    jitted = jit(function, static_argnums=1, backend="graph")
    x = torch.ones(2)
    for n in range(MAX_KINDS):
        jitted(x, n)
    jitted(x, 0)
    jitted(x, MAX_KINDS)  # the graph of 1 has to go
    assert len(jitted._executables) == MAX_KINDS
    before = len(runs)
    for n in (0, 2, MAX_KINDS):
        assert jitted(x, n)[0] == n
    assert len(runs) == before
    assert jitted(x, 1)[0] == 1
    assert len(runs) == before + 1


def test_a_function_that_is_traced_again_and_again_is_warned_of_once():
    def traced_often(x):
        return x * 2

    jitted = jit(traced_often, backend="graph")
    for n in range(MANY_KINDS):
        jitted(torch.ones(n + 1))
    with pytest.warns(UserWarning, match=r"traced_often was traced 33 times.*one shape") as seen:
        jitted(torch.ones(MANY_KINDS + 1))
    assert [each.filename for each in seen] == [__file__]
    jitted(torch.ones(MANY_KINDS + 2))  # warnings are errors


def test_structure_and_memory_format_are_part_of_the_kind():
    function, runs = counted(lambda values: tree.map(torch.neg, values))
    jitted = jit(function, backend="graph")
    x = torch.rand(2, 3, 4, 4)
    jitted({"a": x})
    jitted({"a": x})
    jitted({"b": x})
    jitted({"a": x.to(memory_format=torch.channels_last)})
    assert len(runs) == 3


def test_a_tensor_given_twice_is_one_only_in_calls_that_give_it_twice():
    jitted = jit(lambda a, b: 2 * a + 10 * b, backend="graph")
    x, zeros = torch.ones(3), torch.zeros(3)
    assert jitted(x, x).tolist() == [12, 12, 12]
    assert jitted(x, zeros).tolist() == [2, 2, 2]
    assert jitted(zeros, x).tolist() == [10, 10, 10]
    assert jitted(zeros, zeros).tolist() == [0, 0, 0]


def test_static_arguments():
    function, runs = counted(lambda x, power: x**power)
    jitted = jit(function, static_argnums=1, backend="graph")
    x = torch.arange(3.0)
    torch.testing.assert_close(jitted(x, 2), x**2)
    torch.testing.assert_close(jitted(x, 3), x**3)
    torch.testing.assert_close(jitted(x, 2), x**2)
    assert len(runs) == 2


def test_static_values_of_different_types_are_different():
    jitted = jit(lambda x, factor: x * factor, static_argnums=1, backend="graph")
    dtypes = [jitted(torch.tensor([True]), factor).dtype for factor in (True, 1, 1.0)]
    assert dtypes == [torch.bool, torch.int64, torch.float32]


def test_a_static_argument_that_is_not_hashable_is_refused():
    jitted = jit(lambda x, sizes: x.view(sizes), static_argnums=1, backend="graph")
    with pytest.raises(TraceError, match=r"static argument 1 is \[3\].*tuple"):
        jitted(torch.ones(3), [3])


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


def test_donated_memory_takes_the_new_values():
    jitted = jit(lambda a, b: (a + b, a.sum()), donate_argnums=0, backend="graph")
    a, b = torch.ones(3), torch.arange(3.0)
    memory = a.data_ptr()
    new, total = jitted(a, b)
    assert new.data_ptr() == memory
    torch.testing.assert_close(new, torch.tensor([1.0, 2.0, 3.0]))
    assert total == 3


def test_donated_memory_keeps_its_strides():
    jitted = jit(lambda a: a.T + 1, donate_argnums=0, backend="graph")
    a = torch.arange(4.0).view(2, 2)
    expected = (a.T + 1).T + 1
    once = jitted(a)
    assert jitted(once) is a
    assert len(jitted._executables) == 1
    torch.testing.assert_close(a, expected)


def test_donated_arguments_can_change_places():
    jitted = jit(lambda a, b: (b, a), donate_argnums=(0, 1), backend="graph")
    a, b = torch.zeros(3), torch.ones(3)
    memory = [a.data_ptr(), b.data_ptr()]
    first, second = jitted(a, b)
    assert [first.data_ptr(), second.data_ptr()] == memory
    assert (first == 1).all()
    assert (second == 0).all()


def test_what_passes_through_keeps_its_memory():
    jitted = jit(lambda a, b: {"a": a, "sum": a + b}, donate_argnums=(0, 1), backend="graph")
    a, b = torch.ones(3), torch.ones(3)
    memory = {"a": a.data_ptr(), "sum": b.data_ptr()}
    result = jitted(a, b)
    assert {name: leaf.data_ptr() for name, leaf in result.items()} == memory
    assert (result["a"] == 1).all()
    assert (result["sum"] == 2).all()


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
    for other in (x, x[:2]):
        with pytest.raises(ValueError, match=r"shape \(3,\) shares its memory"):
            jitted(x, other)


def test_inside_transforms_it_is_the_function():
    jitted = jit(lambda x: (x**3).sum(), backend="graph")
    x = torch.arange(3.0)
    torch.testing.assert_close(grad(jitted)(x), 3 * x**2)
    torch.testing.assert_close(vmap(jitted)(x[:, None]), x**3)
    torch.testing.assert_close(jit(grad(jitted), backend="graph")(x), 3 * x**2)
    torch.testing.assert_close(jit(jitted, backend="graph")(x), jitted(x))


@pytest.mark.parametrize(
    "options",
    [{"backend": "cuda"}, {"donate_argnums": -1}, {"donate_argnums": 0, "static_argnums": 0}],
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match="jit:"):
        jit(torch.neg, **options)


def test_a_failing_compiler_is_told_with_a_way_on():
    jitted = jit(lambda x: torch.sin(x) * x.sum(), backend="inductor")
    no_compiler = inductor_config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with no_compiler, pytest.raises(CompileError, match=r'No working C\+\+.*backend="graph"'):
        jitted(torch.ones(3))


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


@pytest.mark.parametrize(
    ("backend", "donate_argnums"),
    [
        *(("graph", ()), ("graph", 0), ("native", ()), ("native", 0)),
        pytest.param("inductor", 0, marks=pytest.mark.slow),
    ],
)
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


def product(loss, params):
    """The Hessian of the loss, times the parameters."""
    return jvp(grad(loss), (params,), (params,))[1]


def members(loss, params):
    """The gradients of two members of an ensemble."""
    return vmap(grad(loss))(tree.map(lambda leaf: torch.stack([leaf, 2 * leaf]), params))


@pytest.mark.parametrize("transformed", [product, members])
def test_transforms_under_jit(transformed):
    step, train_state, batch = training()

    def function(params):
        def loss(params):
            return step(train_state._replace(params=params), batch)[1]["loss"]

        return transformed(loss, params)

    jitted = jit(function, backend="graph")
    for shift in (0.0, 0.3):
        params = tree.map(lambda leaf, shift=shift: leaf + shift, train_state.params)
        torch.testing.assert_close(jitted(params), function(params))


pointwise = st.sampled_from([torch.sin, torch.tanh, torch.exp, torch.square, torch.relu])
TRANSFORMS = {
    "itself": lambda function: function,
    "gradient": lambda function: grad(lambda x: function(x).sum()),
    "derivative along 1": lambda function: lambda x: jvp(function, (x,), (torch.ones_like(x),))[1],
    "rows": vmap,
}


def test_zeros_of_forward_derivatives_can_be_written_over():
    gradient, along = TRANSFORMS["gradient"], TRANSFORMS["derivative along 1"]
    third = gradient(along(gradient(torch.square)))
    x = torch.ones(3)
    assert torch.equal(jit(third, backend="graph")(x), torch.zeros(3))


@given(
    functions=st.lists(pointwise, min_size=1, max_size=3),
    transforms=st.lists(st.sampled_from(list(TRANSFORMS)), max_size=3),
    shape=st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
@settings(max_examples=30)
def test_compositions_are_the_eager_ones(functions, transforms, shape):
    def function(x):
        for pointwise in functions:
            x = pointwise(x)
        return x.cumsum(-1) if x.ndim else x

    for name in transforms:
        function = TRANSFORMS[name](function)
    x = random.normal(random.key(len(functions)), shape, torch.float64)
    torch.testing.assert_close(jit(function, backend="graph")(x), function(x))
