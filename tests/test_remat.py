"""`remat`: the numbers of the layer itself under every transform, from a graph computed twice."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from classifiers import gradients, problem
from hypothesis import Phase, given, settings
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.func import grad, jacrev, jvp, vjp, vmap

import funcnets
from funcnets import optim, random, train, transforms, tree
from funcnets.core import Layer, LayerError, rewrite, sequential
from funcnets.layers import batch_norm, conv2d, dropout, flatten, linear, sigmoid
from funcnets.testing import Architecture, assert_close, random_values, strategies
from funcnets.transforms import remat

KEY = random.key(3)
X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NET = sequential(
    conv=conv2d(3, 3),
    block=sequential(bn=batch_norm(), act=sigmoid(), drop=dropout(0.3), conv=conv2d(4, 2)),
    flat=flatten(),
    fc=linear(3),
)
PARAMS, STATE = random_values(NET, X, 1)


def in_block(net: Layer) -> Layer:
    return rewrite(net, lambda name, part: remat(part) if name == "block" else part)


def everywhere(net: Layer) -> Layer:
    return rewrite(net, lambda name, part: remat(part))


# Traced as well, of which the last takes the most time.
TRACED = ("statistics", "grad", "vmap of jvp of grad")
# Of random networks, of which some take a second for each.
FEW = ("statistics", "grad", "jvp of grad", "vmap of grad")


def results(
    net: Layer, params: Any, state: Any, x: Tensor, train: bool, only: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Value, statistics and derivatives of all orders that anyone asks for, by name."""

    def loss(params: Any, x: Tensor = x) -> tuple[Tensor, Any]:
        y, new_state = net.apply(params, state, x, train=train, key=KEY)
        return y.sin().sum() + sum(leaf.cos().sum() for leaf in tree.leaves(new_state)), new_state

    def gradient(params: Any) -> Any:
        return grad(loss, has_aux=True)(params)[0]

    def along(params: Any) -> Tensor:
        return jvp(lambda p: loss(p)[0], (params,), (tangent,))[1]

    def curved(params: Any) -> Any:
        return jvp(gradient, (params,), (tangent,))[1]

    def output(params: Any) -> Tensor:
        return net.apply(params, state, x, train=train, key=KEY)[0]

    tangent, more = tree.map(torch.cos, params), tree.map(torch.exp, params)
    ways: dict[str, Callable[[], Any]] = {
        "statistics": lambda: loss(params),
        "grad": lambda: grad(loss, (0, 1), has_aux=True)(params, x)[0],
        "jvp": lambda: along(params),
        "jvp of grad": lambda: curved(params),
        "vjp of grad": lambda: vjp(gradient, params)[1](tangent),
        "grad of jvp": lambda: grad(along)(params),
        "vjp": lambda: vjp(output, params)[1](output(params)),
        "vmap of grad": lambda: vmap(gradient)(tree.transpose([params, more])),
        "vmap of jvp of grad": lambda: vmap(curved)(tree.transpose([params, more])),
        "grad of vmap": lambda: grad(lambda many: vmap(along)(many).sum())(
            tree.transpose([params, more])
        ),
    }
    return tree.flatten_named({name: ways[name]() for name in only or ways})


@given(drawn=strategies.layers(), seed=strategies.seeds)
@settings(max_examples=2, phases=[Phase.generate])
def test_random_networks_have_the_same_derivatives(drawn: Architecture, seed: int) -> None:
    net, shape = drawn.layer(), drawn.shape
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    params, state = random_values(net, x, seed)
    if not tree.leaves(params):
        return
    actual = results(everywhere(net), params, state, x, True, FEW)
    assert_close(actual, results(net, params, state, x, True, FEW))


@pytest.mark.parametrize(
    ("rewritten", "train", "names"),
    [
        (in_block, True, TRACED[:2]),
        pytest.param(in_block, True, TRACED[2:], marks=pytest.mark.slow),
        (everywhere, False, TRACED[:2]),
    ],
)
def test_derivatives_eager_and_traced(rewritten: Any, train: bool, names: Any) -> None:
    expected = results(NET, PARAMS, STATE, X, train)
    net = rewritten(NET)
    assert_close(results(net, PARAMS, STATE, X, train), expected)
    traced = funcnets.jit(lambda *values: results(net, *values, train, names), backend="graph")
    assert_close(traced(PARAMS, STATE, X), results(NET, PARAMS, STATE, X, train, names))


def test_plain_autograd_twice() -> None:
    def second(net: Layer) -> dict[str, Tensor]:
        params = tree.map(lambda leaf: leaf.clone().requires_grad_(), PARAMS)
        y, _ = net.apply(params, STATE, X, train=True, key=KEY)
        leaves = tree.leaves(params)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        squares = sum((gradient**2).sum() for gradient in first)
        return dict(zip(tree.names(params), torch.autograd.grad(squares, leaves), strict=True))

    assert_close(second(in_block(NET)), second(NET))


def test_training_steps_update_statistics_once() -> None:
    labels = torch.arange(5) % 3

    def two_steps(net: Layer, wrap: Callable[..., Any]) -> dict[str, Tensor]:
        step = wrap(train.make_train_step(net, optim.sgd(0.1)))
        start = train.TrainState(torch.zeros((), dtype=torch.int64), PARAMS, STATE, ((),), KEY)
        first, _ = step(start, (X, labels))
        after = step(first, (X, labels))[0]
        assert after.step == 2
        return tree.flatten_named((after.params, after.state))

    jit = partial(funcnets.jit, backend="graph")
    assert_close(two_steps(in_block(NET), jit), two_steps(NET, lambda step: step))


def classified(net: Layer, gradient: Any) -> dict[str, Tensor]:
    return gradients(gradient, problem(NET)._replace(net=net))


def test_accumulation_of_the_whole_statistics_refuses_a_batch_norm_inside_and_says_where() -> None:
    with pytest.raises(LayerError, match=r"^block: remat: a batch norm inside .*by itself"):
        classified(in_block(NET), transforms.accumulate(2))
    again = rewrite(in_block(NET), lambda name, part: part)  # which makes the block anew
    with pytest.raises(LayerError, match=r"^block: remat:"):
        classified(again, transforms.accumulate(2))


def test_accumulation_takes_other_parts_and_other_statistics() -> None:
    parts = {"conv", "block.bn", "block.drop", "fc"}
    net = rewrite(NET, lambda name, part: remat(part) if name in parts else part)
    assert_close(classified(net, transforms.accumulate(2)), classified(NET, train.batch_gradient))
    cheap = transforms.accumulate(2, statistics="micro_batch")
    assert_close(classified(in_block(NET), cheap), classified(NET, cheap))


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
def test_gradients_of_each_example(statistics: Any) -> None:
    gradient = transforms.per_example(statistics)
    assert_close(classified(in_block(NET), gradient), classified(NET, gradient))


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"remat: got .*expected a Layer"):
        remat(conv2d)  # type: ignore[arg-type]


def shapes(graph: Any, operation: str) -> list[Any]:
    """The shapes of what an operation gives, for each time that it is in the graph."""
    nodes = [node for node in graph.nodes if str(node.target) == f"aten.{operation}"]
    return [tree.map(Tensor.size, node.meta["val"]) for node in nodes]


def loss_of(net: Layer) -> Any:
    return lambda params, x: net.apply(params, STATE, x, train=True, key=KEY)[0].sum()


def test_a_compiler_that_joins_equal_operations_computes_the_block_twice() -> None:
    traced = funcnets.jit(grad(loss_of(in_block(NET))), lowerings=None).trace(PARAMS, X)
    joined = fx_graph_cse(traced.graph.graph)
    for operation in ("var_mean.correction", "sigmoid.default", "lt.Scalar"):
        assert len(shapes(joined, operation)) == 2, operation


def test_rows_of_a_jacobian_share_what_is_computed_again() -> None:
    def logits(params: Any, x: Tensor) -> Tensor:
        return in_block(NET).apply(params, STATE, x, train=True, key=KEY)[0]

    graph = funcnets.jit(jacrev(logits)).trace(PARAMS, X).graph.graph
    once, again = shapes(graph, "sigmoid.default")
    assert once == again


def peak(function: Any, *args: Any) -> int:
    """The most bytes that a call has allocated at one time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function(*args)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_a_traced_step_takes_less_memory() -> None:
    def block() -> Layer:
        return sequential(a=conv2d(6, 3, padding=1), b=batch_norm(), c=sigmoid(), d=sigmoid())

    net = sequential(**{f"block{i}": block() for i in range(4)})
    x = torch.rand(16, 6, 16, 16)
    params, state = net.init(KEY, x)

    def step(net: Layer) -> Any:
        def loss(params: Any, x: Tensor) -> Tensor:
            return net.apply(params, state, x, train=True)[0].sum()

        return funcnets.jit(grad(loss), backend="graph")

    blocks = rewrite(net, lambda name, part: remat(part) if name in net.children else part)
    once, twice = step(net), step(blocks)
    for run in (once, twice):
        run(params, x)
    assert peak(twice, params, x) < 0.75 * peak(once, params, x)
