"""Optimizers and schedules against torch.optim in float64, and under every transform."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from funcnets import optim, tree

STEPS = 10
SHAPES = {"conv": {"weight": (3, 2, 2, 2), "bias": (3,)}, "scale": ()}

seeds = st.integers(0, 2**32)
rates = st.floats(1e-3, 1.0)
decays = st.just(0.0) | st.floats(1e-4, 0.5)
momenta = st.floats(0.1, 0.99)
betas = st.tuples(st.floats(0.0, 0.99), st.floats(0.0, 0.999))
examples = settings(deadline=None, max_examples=30)


def normal_trees(seed: int, number: int, dtype: torch.dtype = torch.float64) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [
        {
            "conv": {name: draw(shape) for name, shape in SHAPES["conv"].items()},
            "scale": draw(SHAPES["scale"]),
        }
        for _ in range(number)
    ]


def clone(values: Any) -> Any:
    return tree.map(torch.clone, values)


def assert_trees_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(tree.leaves(actual), tree.leaves(expected), rtol=0, atol=0)


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    # Where gradients cancel, Adam divides what is left of them by itself.
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def trained(optimizer: optim.Optimizer, params: Any, grads: list[Any]) -> tuple[Any, Any]:
    opt_state = optimizer.init(params)
    for grad in grads:
        updates, opt_state = optimizer.update(grad, opt_state, params)
        params = optim.apply_updates(params, updates)
    return params, opt_state


def torch_trained(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    params: Any,
    grads: list[Any],
    *,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    max_norm: float | None = None,
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    optimizer = make(leaves)
    scheduler = schedule(optimizer) if schedule else None
    for grad in grads:
        for leaf, value in zip(leaves, tree.leaves(grad), strict=True):
            leaf.grad = value.clone()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves, max_norm)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [leaf.detach() for leaf in leaves], optimizer


def buffers(optimizer: torch.optim.Optimizer, name: str) -> list[Tensor]:
    return [optimizer.state[leaf][name] for leaf in optimizer.param_groups[0]["params"]]


@examples
@given(
    seed=seeds,
    rate=rates,
    momentum=st.just(0.0) | momenta,
    dampening=st.just(0.0) | st.floats(0.0, 1.0),
    nesterov=st.booleans(),
    weight_decay=decays,
)
def test_sgd_is_torchs(seed, rate, momentum, dampening, nesterov, weight_decay):
    nesterov = nesterov and momentum > 0
    options = {
        "momentum": momentum,
        "dampening": 0.0 if nesterov else dampening,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
    }
    params, *grads = normal_trees(seed, STEPS + 1)
    actual, opt_state = trained(optim.sgd(rate, **options), params, grads)
    expected, reference = torch_trained(
        lambda leaves: torch.optim.SGD(leaves, rate, **options), params, grads
    )
    assert_close(tree.leaves(actual), expected)
    traces = [part for part in opt_state if isinstance(part, optim.MomentumState)]
    assert len(traces) == (momentum > 0)
    for part in traces:
        assert_close(tree.leaves(part.trace), buffers(reference, "momentum_buffer"))


@examples
@given(
    seed=seeds,
    rate=rates,
    betas=betas,
    eps=st.floats(1e-10, 1e-3),
    weight_decay=decays,
    decoupled=st.booleans(),
)
def test_adam_and_adamw_are_torchs(seed, rate, betas, eps, weight_decay, decoupled):
    ours, theirs = (optim.adamw, torch.optim.AdamW) if decoupled else (optim.adam, torch.optim.Adam)
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
    params, *grads = normal_trees(seed, STEPS + 1)
    actual, opt_state = trained(ours(rate, **options), params, grads)
    expected, reference = torch_trained(
        lambda leaves: theirs(leaves, rate, **options), params, grads
    )
    assert_close(tree.leaves(actual), expected)
    (state,) = (part for part in opt_state if isinstance(part, optim.AdamState))
    assert state.step.item() == STEPS
    assert_close(tree.leaves(state.mean), buffers(reference, "exp_avg"))
    assert_close(tree.leaves(state.square), buffers(reference, "exp_avg_sq"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optim.sgd, torch.optim.SGD),
        (optim.adam, torch.optim.Adam),
        (optim.adamw, torch.optim.AdamW),
    ],
)
def test_defaults_are_torchs(ours, theirs):
    params, *grads = normal_trees(0, STEPS + 1)
    actual, _ = trained(ours(0.05), params, grads)
    assert_close(tree.leaves(actual), torch_trained(lambda p: theirs(p, 0.05), params, grads)[0])


@examples
@given(seed=seeds, max_norm=st.floats(0.0, 10.0), momentum=momenta)
def test_clipping_is_torchs(seed, max_norm, momentum):
    params, *grads = normal_trees(seed, STEPS + 1)
    optimizer = optim.chain(optim.clip_by_global_norm(max_norm), optim.sgd(0.1, momentum))
    actual, _ = trained(optimizer, params, grads)
    expected, _ = torch_trained(
        lambda leaves: torch.optim.SGD(leaves, 0.1, momentum),
        params,
        grads,
        max_norm=max_norm,
    )
    assert_close(tree.leaves(actual), expected)


@examples
@given(seed=seeds, rate=rates, momentum=momenta)
def test_scheduled_training_is_torchs(seed, rate, momentum):
    params, *grads = normal_trees(seed, STEPS + 1)
    optimizer = optim.sgd(optim.step_decay(rate, 3, 0.5), momentum)
    actual, opt_state = trained(optimizer, params, grads)
    expected, _ = torch_trained(
        lambda leaves: torch.optim.SGD(leaves, rate, momentum),
        params,
        grads,
        schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    )
    assert_close(tree.leaves(actual), expected)
    assert opt_state[-1].step.item() == STEPS


OPTIMIZERS = {
    "sgd": optim.sgd(0.1),
    "nesterov": optim.sgd(0.1, 0.9, nesterov=True, weight_decay=0.01),
    "dampened": optim.sgd(0.1, 0.9, dampening=0.3),
    "scheduled": optim.sgd(optim.one_cycle(0.1, 4), 0.9),
    "warm": optim.sgd(optim.warmup(2, optim.linear(0.1, 3))),
    "adam": optim.adam(optim.cosine(0.1, 4), weight_decay=0.01),
    "adamw": optim.adamw(optim.step_decay(0.1, 2, 0.5)),
    "clipped": optim.chain(optim.clip_by_global_norm(1.0), optim.adam(optim.constant(0.1))),
}
PARTS = {
    "masked": optim.chain(optim.masked(optim.add_decayed_weights(0.1), "*.weight"), optim.sgd(0.1)),
    "partition": optim.partition({"conv.weight": optim.frozen(), "*": optim.adam(0.1)}),
}
each_optimizer = pytest.mark.parametrize(
    "optimizer", [*OPTIMIZERS.values(), *PARTS.values()], ids=[*OPTIMIZERS, *PARTS]
)


def test_plain_sgd_has_no_state_and_one_multiplication_a_leaf():
    (params,) = normal_trees(0, 1)
    optimizer = OPTIMIZERS["sgd"]
    assert tree.leaves(optimizer.init(params)) == []
    graph = make_fx(lambda g: optimizer.update(g, optimizer.init(g), g)[0])(params)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.aten.mul.Tensor] * 3


@each_optimizer
def test_inputs_are_unchanged(optimizer):
    params, *grads = normal_trees(1, 3)
    before = clone((params, grads))
    _, opt_state = trained(optimizer, params, grads)
    state_before = clone(opt_state)
    updates, _ = optimizer.update(grads[0], opt_state, params)
    optim.apply_updates(params, updates)
    assert_trees_equal((params, grads, opt_state), (*before, state_before))


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_memory_formats_stay(optimizer, dtype):
    params, *grads = normal_trees(2, 3, dtype)
    params["conv"]["weight"] = params["conv"]["weight"].to(memory_format=torch.channels_last)
    for grad in grads:
        grad["conv"]["weight"] = grad["conv"]["weight"].to(memory_format=torch.channels_last)
    new, opt_state = trained(optimizer, params, grads)
    named = {n: x for n, x in tree.flatten_named(opt_state).items() if x.dtype != torch.int64}
    kept = [*named.values()]
    assert {x.dtype for x in tree.leaves(new)} == {dtype}
    for name, leaf in named.items():  # Adam's running means are never of half precision
        is_adams = "mean" in name or "square" in name
        assert leaf.dtype == (torch.promote_types(dtype, torch.float32) if is_adams else dtype)
    assert all(x.isfinite().all() for x in tree.leaves(new) + kept)
    assert new["conv"]["weight"].is_contiguous(memory_format=torch.channels_last)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in kept if x.ndim == 4)


@each_optimizer
def test_a_step_traces_on_fake_tensors(optimizer):
    params, *grads = normal_trees(3, 4)

    def step(params, opt_state, grad):
        updates, opt_state = optimizer.update(grad, opt_state, params)
        return optim.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    graph = make_fx(step, tracing_mode="fake")(params, opt_state, grads[0])
    actual = params, opt_state
    for grad in grads:
        actual = graph(*actual, grad)
    assert_close(tree.leaves(actual), tree.leaves(trained(optimizer, params, grads)))


@each_optimizer
def test_vmap_over_models_is_a_loop_over_models(optimizer):
    runs = [normal_trees(seed, 4) for seed in range(3)]
    stacked = tree.transpose(runs)
    actual = torch.func.vmap(lambda run: trained(optimizer, run[0], run[1:]))(stacked)
    expected = tree.transpose([trained(optimizer, run[0], run[1:]) for run in runs])
    assert_close(tree.leaves(actual), tree.leaves(expected))


SWEEPS = {
    "sgd": lambda rate: optim.sgd(rate, 0.9),
    "adamw": optim.adamw,
    "constant": lambda rate: optim.sgd(optim.constant(rate)),
    "step_decay": lambda rate: optim.sgd(optim.step_decay(rate, 2, 0.5)),
    "linear": lambda rate: optim.sgd(optim.linear(rate, 3)),
    "cosine": lambda rate: optim.sgd(optim.warmup(1, optim.cosine(rate, 3))),
    "one_cycle": lambda rate: optim.sgd(optim.one_cycle(rate, 3)),
}


@pytest.mark.parametrize("make", SWEEPS.values(), ids=SWEEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vmap_over_learning_rates_is_a_loop_over_them(make, dtype):
    params, *grads = normal_trees(4, 4, dtype)
    sweep = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    actual = torch.func.vmap(lambda rate: trained(make(rate), params, grads)[0])(sweep)
    expected = tree.transpose([trained(make(rate.item()), params, grads)[0] for rate in sweep])
    torch.testing.assert_close(tree.leaves(actual), tree.leaves(expected))


def test_the_learning_rate_has_a_gradient():
    params, *grads = normal_trees(5, 3)

    def end(rate):
        return optim.global_norm(
            trained(optim.sgd(optim.one_cycle(rate, 3), 0.5), params, grads)[0]
        )

    rate, small = torch.tensor(0.1, dtype=torch.float64), 1e-6
    slope = (end(rate + small) - end(rate - small)) / (2 * small)
    assert torch.func.grad(end)(rate).item() == pytest.approx(slope.item(), rel=1e-6)


def test_mixed_precision_gradients_give_updates_in_the_parameters_dtype():
    (params,) = normal_trees(6, 1, torch.bfloat16)
    (grads,) = normal_trees(7, 1, torch.float32)
    updates, _ = optim.sgd(0.1).update(grads, ((),), params)
    assert {x.dtype for x in tree.leaves(optim.apply_updates(params, updates))} == {torch.bfloat16}


@examples
@given(seed=seeds)
def test_global_norm_is_the_norm_of_the_joined_leaves(seed):
    (values,) = normal_trees(seed, 1)
    expected = torch.cat([x.flatten() for x in tree.leaves(values)]).norm()
    assert_close([optim.global_norm(values)], [expected])


def test_global_norm_of_low_precision_and_of_nothing():
    # 4,096 ones added up in bfloat16 would stop at 256.
    norm = optim.global_norm({"a": torch.ones(4096, dtype=torch.bfloat16)})
    assert norm.dtype == torch.float32
    assert norm.item() == 64
    assert optim.global_norm({}).item() == 0


@each_optimizer
def test_the_state_is_on_the_device_of_the_parameters(optimizer):
    params, grads = (tree.map(lambda x: x.to("meta"), part) for part in normal_trees(9, 2))
    params, opt_state = trained(optimizer, params, [grads])
    assert all(leaf.is_meta for leaf in tree.leaves((params, opt_state)))


def test_an_empty_tree_has_an_optimizer_too():
    for optimizer in OPTIMIZERS.values():
        assert trained(optimizer, {}, [{}, {}])[0] == {}


def test_adam_has_a_meta_gradient_where_the_gradient_is_zero():
    def loss_after_a_step(w, **options):
        optimizer = optim.adam(0.1, **options)
        grads = torch.func.grad(lambda w: (w**2).sum())(w)
        updates, _ = optimizer.update({"w": grads}, optimizer.init({"w": w}), {"w": w})
        return ((w + updates["w"]) ** 2).sum()

    w = torch.tensor([1.0, 0.0])
    for eps_root in (0.0, 1e-8):
        meta_gradient = torch.func.grad(partial(loss_after_a_step, eps_root=eps_root))(w)
        torch.testing.assert_close(meta_gradient, torch.tensor([1.8, 0.0]))


def test_eps_root_is_added_under_the_root():
    grads = {"w": torch.tensor([3.0, 0.5], dtype=torch.float64)}
    optimizer = optim.adam(1.0, eps=0.0, eps_root=2.0)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    torch.testing.assert_close(updates["w"], -grads["w"] / (grads["w"] ** 2 + 2).sqrt())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-5, 3.0])
def test_adam_of_half_precision_is_adam_of_float32(dtype, size):
    """Squares of small gradients, and eps, are 0 in float16."""
    grads = {"w": torch.full((2,), size, dtype=dtype)}
    optimizer = optim.adam(1e-3)
    update = optimizer.update(grads, optimizer.init(grads), grads)[0]["w"]
    wide = tree.map(torch.Tensor.float, grads)
    expected = optimizer.update(wide, optimizer.init(wide), wide)[0]["w"]
    assert update.dtype == dtype
    assert torch.equal(update, expected.to(dtype))


def test_adam_of_complex_numbers_squares_their_size():
    grads = {"w": torch.tensor([1 + 2j])}
    optimizer = optim.adam(0.1)
    updates, state = optimizer.update(grads, optimizer.init(grads), grads)
    torch.testing.assert_close(updates["w"], -0.1 * grads["w"] / 5**0.5)
    assert not state[0].square["w"].is_complex()


@pytest.mark.parametrize(
    "make",
    [lambda rate: optim.sgd(rate), lambda rate: optim.chain(optim.clip_by_global_norm(rate))],
)
def test_factors_are_not_rounded_to_half_precision(make):
    grads = {"w": torch.tensor([1e4], dtype=torch.float16)}
    rate = torch.tensor(3e-8, dtype=torch.float64)  # 0 or 6e-8 in float16
    optimizer = optim.sgd(rate)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    assert float(updates["w"]) == pytest.approx(-3e-4, rel=1e-3)
    clipped, _ = optim.clip_by_global_norm(3e-4).update(grads, (), grads)
    assert float(clipped["w"]) == pytest.approx(3e-4, rel=2e-3)


def test_a_state_of_another_optimizer_is_refused():
    params, grads = normal_trees(8, 2)
    with pytest.raises(ValueError, match=r"a tuple of length 2; expected a tuple of length 1"):
        optim.sgd(0.1).update(grads, optim.sgd(0.1, 0.9).init(params), params)
