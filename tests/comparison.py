"""A layer and its module twin on the same numbers: what each computes, and whether it is equal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from funcnets import optim, random, train, tree
from funcnets.core import Layer

Named = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


class Pair(NamedTuple):
    """A layer and its twin with the same leaves, an input and a key."""

    net: Layer
    module: nn.Module
    params: dict[str, Any]
    state: dict[str, Any]
    x: Tensor
    key: Tensor


class Results(NamedTuple):
    """What a layer makes of an input, in one mode."""

    output: Tensor
    gradients: Named  # of sum(output * cotangent), by leaf; the input's is called `input`
    statistics: Named


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_like(values: Any, seed: int) -> Any:
    """A tree of normal numbers, of the shapes and types of `values`."""
    source = generator(seed)
    return tree.map(lambda leaf: torch.randn(leaf.shape, generator=source).to(leaf), values)


def init(net: Layer, x: Tensor, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leaves off their initial values, where many are 0 or 1 and would hide a mistake."""
    params, state = net.init(random.key(seed), x)
    params = tree.map(lambda leaf, noise: leaf + noise / 8, params, random_like(params, seed))
    return params, _statistics_like(state, seed + 1)


def _statistics_like(state: Any, seed: int) -> Any:
    """Random numbers in (1/e, e), as a variance has to be positive."""
    return tree.map(lambda noise: noise.tanh().exp(), random_like(state, seed))


def leaves_of(module: nn.Module, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random parameters and statistics under the names that the module gives them.

    Weights of convolutions and linear layers keep the size of what passes through them; those
    of batch norms are around 1.
    """

    def sized(name: str, leaf: Tensor, noise: Tensor) -> Tensor:
        if leaf.ndim > 1:
            return noise * (2 / leaf[0].numel()) ** 0.5
        return name.endswith("weight") + noise / 4

    params = dict(module.named_parameters())
    params = tree.map_named(sized, params, random_like(params, seed))
    state = _statistics_like(buffers(module), seed + 1)
    return tree.unflatten_named(params), tree.unflatten_named(state)


def pair(net: Layer, module: nn.Module, shape: Sequence[int], seed: int) -> Pair:
    """The two with the same random leaves, in float64, and an input of the given shape."""
    module = module.double()
    params, state = leaves_of(module, seed)
    x = torch.randn(*shape, generator=generator(seed + 2), dtype=torch.float64)
    return Pair(net, module, params, state, x, random.key(seed + 3))


def load(module: nn.Module, params: Any, state: Any) -> None:
    """Copy the leaves into the module, by name, and complain of any difference in names."""
    counters = {
        name: value for name, value in module.state_dict().items() if name.endswith("_tracked")
    }
    named = tree.flatten_named(params) | tree.flatten_named(state)
    module.load_state_dict(named | counters)


def buffers(module: nn.Module) -> Named:
    return {name: value.clone() for name, value in module.named_buffers() if "_tracked" not in name}


def dropout_keys(layer: Layer, key: Tensor, *path: str) -> Iterator[tuple[str, Tensor]]:
    """Name and key of each dropout in `layer`: part i of a layer gets `fold_in(key, i)`."""
    if layer.kind.startswith("dropout("):
        yield ".".join(path), key
    for i, (name, part) in enumerate(layer.parts):
        if part.stochastic:
            below = path if name is None else (*path, name)
            yield from dropout_keys(part, random.fold_in(key, i), *below)


def _set_mask(key: Tensor, dropout: nn.Module, args: tuple[Tensor]) -> None:
    dropout.mask = random.bernoulli(key, 1 - dropout.p, args[0].shape)


@contextmanager
def masked(module: nn.Module, net: Layer, key: Tensor) -> Iterator[None]:
    """Give every dropout of the module the mask that `net` draws from `key`."""
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(partial(_set_mask, own))
        for name, own in dropout_keys(net, key)
    ]
    yield
    for hook in hooks:
        hook.remove()


def functional_results(pair: Pair, cotangent: Tensor, mode: bool) -> Results:
    def loss(params: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, Any]]:
        y, state = pair.net.apply(params, pair.state, x, train=mode, key=pair.key)
        return (y * cotangent).sum(), (y, state)

    gradient = torch.func.grad(loss, argnums=(0, 1), has_aux=True)
    (of_params, of_input), (output, state) = gradient(pair.params, pair.x)
    gradients = tree.flatten_named(of_params) | {"input": of_input}
    return Results(output, gradients, tree.flatten_named(state))


def module_results(pair: Pair, cotangent: Tensor, mode: bool) -> Results:
    load(pair.module, pair.params, pair.state)
    pair.module.train(mode).zero_grad()
    x = pair.x.clone().requires_grad_()
    with masked(pair.module, pair.net, pair.key):
        output = pair.module(x)
    (output * cotangent).sum().backward()
    gradients = {name: leaf.grad for name, leaf in pair.module.named_parameters()}
    return Results(output.detach(), gradients | {"input": x.grad}, buffers(pair.module))


def assert_close(actual: Named, expected: Named, tolerance: float = 1e-9) -> None:
    """The same names, and each tensor within `tolerance` of the largest value of all.

    A gradient that is 0, as that of a bias before batch norm, is computed as a difference of
    larger numbers, so its own size says nothing of its rounding.
    """
    assert actual.keys() == expected.keys()
    largest = max([float(value.abs().max()) for value in expected.values() if value.numel()] or [0])
    allowed = tolerance * (largest or 1)
    for name, value in actual.items():
        other = expected[name]
        assert value.shape == other.shape, name
        assert value.dtype == other.dtype, name
        if value.numel() == 0:
            continue
        difference = (value - other).abs().max()
        # Written so that NaN fails.
        assert difference <= allowed, f"{name}: {difference:.1e} apart, {allowed:.1e} allowed"


def assert_equals_twin(pair: Pair, tolerance: float = 1e-9) -> None:
    """Outputs, gradients and statistics agree, in training and in evaluation."""
    like = pair.net.apply(pair.params, pair.state, pair.x)[0]
    cotangent = random_like(like, 0)
    for mode in (True, False):
        actual = functional_results(pair, cotangent, mode)
        expected = module_results(pair, cotangent, mode)
        assert_close({"output": actual.output}, {"output": expected.output}, tolerance)
        assert_close(actual.gradients, expected.gradients, tolerance)
        assert_close(actual.statistics, expected.statistics, tolerance)


def batches(pair: Pair, steps: int, seed: int) -> list[Batch]:
    """Random images like the pair's and random labels of 10 classes."""
    source = generator(seed)
    shape, dtype = pair.x.shape, pair.x.dtype
    return [
        (
            torch.randn(shape, generator=source, dtype=dtype),
            torch.randint(10, shape[:1], generator=source),
        )
        for _ in range(steps)
    ]


def functional_steps(
    pair: Pair,
    batches: Sequence[Batch],
    rate: float,
    transform: Callable[..., Any] = lambda step: step,
) -> Iterator[Named]:
    """Loss, parameters and statistics after each training step by `funcnets.train`."""
    optimizer = optim.sgd(rate)
    step = transform(train.make_train_step(pair.net, optimizer))
    train_state = train.TrainState(
        torch.zeros((), dtype=torch.int64),
        pair.params,
        pair.state,
        optimizer.init(pair.params),
        pair.key,
    )
    for batch in batches:
        train_state, measured = step(train_state, batch)
        leaves = tree.flatten_named(train_state.params) | tree.flatten_named(train_state.state)
        yield leaves | {"loss": measured["loss"]}


def module_steps(pair: Pair, batches: Sequence[Batch], rate: float) -> Iterator[Named]:
    """The same by `torch.optim.SGD` on the module."""
    load(pair.module, pair.params, pair.state)
    pair.module.train()
    optimizer = torch.optim.SGD(pair.module.parameters(), rate)
    key = random.split(pair.key)[1]
    for index, (images, labels) in enumerate(batches):
        with masked(pair.module, pair.net, random.fold_in(key, index)):
            loss = nn.functional.cross_entropy(pair.module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        leaves = {name: leaf.detach().clone() for name, leaf in pair.module.named_parameters()}
        yield leaves | buffers(pair.module) | {"loss": loss.detach()}


def assert_trains_alike(pair: Pair, seed: int, **options: Any) -> None:
    """Five steps of SGD give the same losses, parameters and statistics after each.

    Some of the random networks explode, and rounding with them: those are compared until then.
    """
    data = batches(pair, 5, seed)
    actual = functional_steps(pair, data, 0.01, **options)
    for step, (ours, theirs) in enumerate(zip(actual, module_steps(pair, data, 0.01), strict=True)):
        if step and not theirs["loss"] < 1e3:
            break
        assert_close(ours, theirs)
