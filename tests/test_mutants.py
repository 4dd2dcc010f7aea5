"""Broken layers, each of which the assertion of `funcnets.testing` that is named here catches."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from funcnets import layers, optim, random, testing
from funcnets.core import Layer, wrap

IMAGES, ROWS = (4, 3, 6, 6), (5, 4)
KEY = random.key(3)


def changed(layer: Layer, call: Callable[..., Any]) -> Layer:
    """The layer with `call(apply, params, state, x, train, key)` in place of its `apply`."""

    def around(inner: Any) -> Any:
        def apply(params: Any, state: Any, x: Tensor, *, train: bool = False, key: Any = None):
            return call(inner, params, state, x, train, key)

        return apply

    return wrap(layer, around)


def with_output(layer: Layer, function: Callable[[Tensor, Tensor], Tensor]) -> Layer:
    """The layer whose output is `function(x, y)` of its input and its output."""

    def call(inner: Any, params: Any, state: Any, x: Tensor, train: bool, key: Any) -> Any:
        y, state = inner(params, state, x, train=train, key=key)
        return function(x, y), state

    return changed(layer, call)


def with_params(layer: Layer, function: Callable[[Tensor], Tensor]) -> Layer:
    """The layer that computes with `function(weight)` for its weight."""

    def call(inner: Any, params: Any, state: Any, x: Tensor, train: bool, key: Any) -> Any:
        params = {**params, "weight": function(params["weight"])}
        return inner(params, state, x, train=train, key=key)

    return changed(layer, call)


def in_mode(layer: Layer, mode: bool) -> Layer:
    """The layer that is always in training, or never."""
    return changed(layer, lambda inner, p, s, x, train, key: inner(p, s, x, train=mode, key=key))


def with_key(layer: Layer, function: Callable[[Tensor], Tensor]) -> Layer:
    def call(inner: Any, params: Any, state: Any, x: Tensor, train: bool, key: Any) -> Any:
        return inner(params, state, x, train=train, key=None if key is None else function(key))

    return changed(layer, call)


def with_state(layer: Layer, function: Callable[[Any, Any], Any]) -> Layer:
    """The layer whose new state is `function(before, after)`."""

    def call(inner: Any, params: Any, state: Any, x: Tensor, train: bool, key: Any) -> Any:
        y, after = inner(params, state, x, train=train, key=key)
        return y, function(state, after)

    return changed(layer, call)


def writing(layer: Layer, write: Callable[[Any, Any, Tensor], Any]) -> Layer:
    """The layer that writes to its arguments."""

    def call(inner: Any, params: Any, state: Any, x: Tensor, train: bool, key: Any) -> Any:
        write(params, state, x)
        return inner(params, state, x, train=train, key=key)

    return changed(layer, call)


def unkeyed(key: Tensor) -> Tensor:
    return torch.randint(1000, (2,), dtype=torch.int32)


def one_mask(rate: float) -> Layer:
    """Dropout with the mask of the first example for all."""
    layer = layers.dropout(rate)

    def call(inner: Any, params: Any, state: Any, x: Tensor, train: bool, key: Any) -> Any:
        mask, state = inner(params, state, torch.ones_like(x[:1]), train=train, key=key)
        return x * mask, state

    return changed(layer, call)


def unchecked(layer: Layer) -> Layer:
    """A convolution without checks."""

    def apply(params: Any, state: Any, x: Tensor, *, train: bool = False, key: Any = None) -> Any:
        return F.conv2d(torch.as_tensor(x), params["weight"], params["bias"]), {}

    return Layer("conv2d", layer.init, apply)


def fixed_init(layer: Layer) -> Layer:
    return Layer(layer.kind, lambda key, x: layer.init(KEY, x), layer.apply)


def doubled_gradient(x: Tensor, y: Tensor) -> Tensor:
    return 2 * y - y.detach()


def shifted(layer: Layer) -> Layer:
    """The convolution with its padding on one side."""

    def call(inner: Any, params: Any, state: Any, x: Tensor, train: bool, key: Any) -> Any:
        return inner(params, state, F.pad(x, (2, 0, 2, 0)), train=train, key=key)

    return changed(layer, call)


class Mutant(NamedTuple):
    """A broken layer, the module that it should equal, and what catches it."""

    layer: Layer
    caught: str  # regular expression for the message
    module: nn.Module | None = None
    shape: tuple[int, ...] = IMAGES
    check: Callable[..., None] = testing.assert_equivalent
    options: dict[str, Any] = {}  # noqa: RUF012


BN, CONV, DROPOUT, LINEAR = layers.batch_norm, layers.conv2d, layers.dropout, layers.linear

AGAINST_MODULES = {
    "eps": Mutant(BN(eps=1e-3), "^output in training", nn.BatchNorm2d(3)),
    "biased_variance": Mutant(
        BN(unbiased=False), "^statistics in training: `running_var`", nn.BatchNorm2d(3)
    ),
    "momentum_the_wrong_way_round": Mutant(
        BN(0.9), "^statistics in training", nn.BatchNorm2d(3, momentum=0.1)
    ),
    "batch_statistics_in_evaluation": Mutant(
        in_mode(BN(), True), "^output in evaluation", nn.BatchNorm2d(3)
    ),
    "running_statistics_in_training": Mutant(
        in_mode(BN(), False), "^output in training", nn.BatchNorm2d(3)
    ),
    "statistics_are_lost": Mutant(
        with_state(BN(), lambda before, after: before), "^statistics in training", nn.BatchNorm2d(3)
    ),
    "gradient_besides": Mutant(
        with_output(
            BN(), lambda x, y: y + (x - x.mean()).detach() * 0 + x.mean() - x.mean().detach()
        ),
        "^gradients in training: `input`",
        nn.BatchNorm2d(3),
    ),
    "padding_off_by_one": Mutant(
        CONV(3, 3, padding=1), "^output of the layer: has shape", nn.Conv2d(3, 3, 3)
    ),
    "padding_on_one_side": Mutant(
        shifted(CONV(3, 3)), "^output in training", nn.Conv2d(3, 3, 3, padding=1)
    ),
    "kernel_flipped": Mutant(
        with_params(CONV(3, 3), lambda weight: weight.flip(2, 3)),
        "^output in training",
        nn.Conv2d(3, 3, 3),
    ),
    "kernel_transposed": Mutant(
        with_params(CONV(3, 3), lambda weight: weight.mT), "^output in training", nn.Conv2d(3, 3, 3)
    ),
    "channels_exchanged": Mutant(
        with_params(CONV(3, 3), lambda weight: weight.transpose(0, 1)),
        "^output in training",
        nn.Conv2d(3, 3, 3),
    ),
    "weight_transposed": Mutant(
        with_params(LINEAR(4), lambda weight: weight.T), "^output in", nn.Linear(4, 4), ROWS
    ),
    "bias_forgotten": Mutant(LINEAR(3, bias=False), "unexpected: bias", nn.Linear(4, 3), ROWS),
    "gradient_doubled": Mutant(
        with_output(LINEAR(3), doubled_gradient), "^gradients in training", nn.Linear(4, 3), ROWS
    ),
    "gradient_of_weight_lost": Mutant(
        with_params(LINEAR(3), torch.detach),
        "^gradients in training: `weight`",
        nn.Linear(4, 3),
        ROWS,
    ),
    "gradient_of_input_lost": Mutant(
        changed(
            LINEAR(3),
            lambda inner, p, s, x, train, key: inner(p, s, x.detach(), train=train, key=key),
        ),
        "^gradients in training: `input`",
        nn.Linear(4, 3),
        ROWS,
    ),
    "computed_in_float32": Mutant(
        with_output(LINEAR(3), lambda x, y: y.float().double()), "^output in", nn.Linear(4, 3), ROWS
    ),
    "padding_of_max_pool_is_zero": Mutant(
        changed(
            layers.max_pool(3, 2),
            lambda inner, p, s, x, train, key: inner(p, s, F.pad(x, (1, 1, 1, 1)), train=train),
        ),
        "^output in training",
        nn.MaxPool2d(3, 2, 1),
    ),
    "padding_counts_in_no_mean": Mutant(
        layers.avg_pool(3, 2, 1), "^output in", nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    ),
    "dropout_scaled_twice": Mutant(
        with_output(DROPOUT(0.5), lambda x, y: torch.where(y == x, y, 2 * y)),
        "^output in training",
        nn.Dropout(0.5),
    ),
    "dropout_not_scaled": Mutant(
        with_output(DROPOUT(0.5), lambda x, y: torch.where(y == x, y, y / 2)),
        "^output in training",
        nn.Dropout(0.5),
    ),
    "dropout_in_evaluation": Mutant(
        in_mode(DROPOUT(0.5), True), "^output in evaluation", nn.Dropout(0.5)
    ),
    "dropout_of_another_rate": Mutant(DROPOUT(0.45), "keeps 0.5 of its values", nn.Dropout(0.5)),
    "dropout_of_features": Mutant(
        DROPOUT(0.5), "drops each element in the layer, feature", nn.Dropout2d(0.5)
    ),
    "one_mask_for_all_examples": Mutant(one_mask(0.5), "one mask for all", nn.Dropout(0.5)),
    "dropout_forgotten": Mutant(layers.relu(), "no counterpart", nn.Dropout(0.5)),
    "dropout_besides": Mutant(DROPOUT(0.5), "^output in training", nn.Identity()),
    "negative_slope": Mutant(layers.relu(), "^output in training", nn.LeakyReLU(0.01)),
}

_TRAINING = testing.assert_trains_alike
OTHER_RATE = (optim.sgd(0.01), partial(torch.optim.SGD, lr=0.02))
NESTEROV = (
    optim.sgd(0.1, 0.9, nesterov=True),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
)
IN_TRAINING = {
    "learning_rate": Mutant(
        LINEAR(3), r"^training step 1: `params\.", nn.Linear(4, 3), ROWS,
        _TRAINING, {"optimizers": OTHER_RATE},
    ),
    "nesterov": Mutant(
        LINEAR(3), r"^training step 1: `params", nn.Linear(4, 3), ROWS,
        _TRAINING, {"optimizers": NESTEROV},
    ),
    "batch_norm_momentum": Mutant(
        BN(0.9), r"^training step 1: `state\.running", nn.BatchNorm1d(4), ROWS, _TRAINING
    ),
    "loss_of_a_sum": Mutant(
        with_output(LINEAR(3), lambda x, y: 2 * y), "^training step 1: `loss`", nn.Linear(4, 3),
        ROWS, _TRAINING,
    ),
}  # fmt: skip

OF_ALL_LAYERS = {
    "leak_between_examples": Mutant(
        with_output(layers.tanh(), lambda x, y: y - y.mean(0)), "examples_alone: output of example"
    ),
    "input_written": Mutant(
        writing(layers.tanh(), lambda p, s, x: x.add_(1)), "unchanged_inputs: .*`x` differs"
    ),
    "params_written": Mutant(
        writing(CONV(3, 3), lambda p, s, x: p["weight"].mul_(2)),
        r"unchanged_inputs: .*`params\.weight` differs",
    ),
    "state_written": Mutant(
        writing(BN(), lambda p, s, x: s["running_mean"].add_(1)),
        r"unchanged_inputs: .*`state\.running_mean` differs",
    ),
    "state_shares_memory": Mutant(
        with_state(BN(), lambda before, after: before), "unchanged_inputs: in training, .*`state"
    ),
    "key_ignored": Mutant(
        with_key(DROPOUT(), lambda key: KEY), "same_key_same_numbers: .*another key gives the same"
    ),
    "key_not_used": Mutant(
        with_key(DROPOUT(), unkeyed), "same_key_same_numbers: a second call with the same key"
    ),
    "key_read_in_evaluation": Mutant(
        changed(
            DROPOUT(),
            lambda inner, p, s, x, train, key: inner(p, s, x, train=key is not None, key=key),
        ),
        "evaluation_ignores_key",
    ),
    "evaluation_moves_state": Mutant(in_mode(BN(), True), "state: state after evaluation"),
    "training_keeps_state": Mutant(in_mode(BN(), False), "state: training keeps `running_mean`"),
    "init_ignores_key": Mutant(fixed_init(CONV(3, 3)), "initial_values: .*`weight|bias`"),
    "gradient_lost": Mutant(
        with_params(CONV(3, 3), torch.detach), "gradients: the gradient of weight is 0"
    ),
    "gradient_not_finite": Mutant(
        with_params(CONV(3, 3), lambda weight: weight + (weight - weight).abs().sqrt()),
        "gradients: the gradient of `weight` is not finite",
    ),
    "always_float32": Mutant(
        with_output(layers.tanh(), lambda x, y: y.float()), "dtypes: .*float32 for an input of"
    ),
    "shape_by_value": Mutant(
        with_output(layers.tanh(), lambda x, y: y if x.is_meta else y[:, :2]),
        r"declared_output: .*shape torch\.Size\(\[4, 2",
    ),
    "memory_format_lost": Mutant(
        with_output(layers.tanh(), lambda x, y: y.contiguous()), "channels_last: .*isn't in"
    ),
    "no_vmap": Mutant(with_output(layers.tanh(), lambda x, y: y * y.max().item()), "vmap: raised"),
    "no_empty_batch": Mutant(
        with_output(layers.tanh(), lambda x, y: y - y.min() * 0), "empty_batch: raised"
    ),
    "no_check_of_rank": Mutant(unchecked(CONV(3, 3)), "wrong_rank: raised nothing"),
    "no_check_of_dtype": Mutant(unchecked(CONV(3, 3)), "integer_input: raised RuntimeError"),
    "no_check_of_channels": Mutant(unchecked(CONV(3, 3)), "wrong_channels: raised RuntimeError"),
    "no_check_of_parameters": Mutant(unchecked(CONV(3, 3)), "missing_parameters: raised KeyError"),
    "no_check_of_arrays": Mutant(unchecked(CONV(3, 3)), "array_input: raised"),
    "no_check_of_dtypes_of_weights": Mutant(
        unchecked(CONV(3, 3)), "wrong_dtype: raised RuntimeError"
    ),
    "no_check_of_key": Mutant(
        with_key(in_mode(DROPOUT(), False), lambda key: key), "missing_key: raised nothing"
    ),
}


@pytest.mark.parametrize("name", {**AGAINST_MODULES, **IN_TRAINING})
def test_a_mutant_is_told_from_its_module(name: str) -> None:
    mutant = {**AGAINST_MODULES, **IN_TRAINING}[name]
    with pytest.raises(testing.Difference, match=mutant.caught):
        mutant.check(mutant.layer, mutant.module, mutant.shape, **mutant.options)


@pytest.mark.parametrize("name", OF_ALL_LAYERS)
def test_a_mutant_breaks_a_promise_of_all_layers(name: str) -> None:
    mutant = OF_ALL_LAYERS[name]
    with pytest.raises(AssertionError, match=mutant.caught):
        testing.check_layer(mutant.layer, mutant.shape)


class WrongDerivative(torch.autograd.Function):
    """Doubles; forward and reverse mode are wrong as one of its subclasses says."""

    generate_vmap_rule = True
    forward_factor, backward_factor = 2.0, 2.0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @classmethod
    def backward(cls, ctx: Any, gradient: Tensor) -> Tensor:
        return cls.backward_factor * gradient

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor) -> Tensor:
        return cls.forward_factor * tangent


class WrongForward(WrongDerivative):
    forward_factor = 3.0


class WrongBackward(WrongDerivative):
    backward_factor = 3.0


def counting() -> Callable[[Tensor], Tensor]:
    """A function that isn't pure."""
    calls: list[None] = []

    def function(x: Tensor) -> Tensor:
        calls.append(None)
        return x * len(calls)

    return function


FUNCTIONS = {
    "impure": (counting(), "jit", "^jit on graph"),
    "wrong_jvp": (WrongForward.apply, "jvp", "^jvp: "),
    "wrong_vjp": (WrongBackward.apply, "vjp", "^vjp: "),
    "detached": (lambda x: x * x.detach(), "jvp", "^jvp: "),
    "cancelling": (lambda x: (x + 1e6) - 1e6, "float32", "^float32: "),
    "random": (lambda x: x + torch.rand(3), "vmap", "^vmap: "),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_of_a_broken_function_disagree(name: str) -> None:
    function, check, message = FUNCTIONS[name]
    x = random.normal(KEY, (3,), torch.float64)
    with torch.random.fork_rng(devices=[]), pytest.raises(testing.Difference, match=message):
        testing.assert_transforms_agree(function, x, checks=[check])


def test_what_is_not_broken_passes() -> None:
    testing.assert_equivalent(BN(), nn.BatchNorm2d(3), IMAGES)
    testing.assert_equivalent(CONV(3, 3), nn.Conv2d(3, 3, 3), IMAGES)
    testing.assert_equivalent(DROPOUT(), nn.Dropout(0.5), IMAGES)
    testing.assert_equivalent(LINEAR(3), nn.Linear(4, 3), ROWS)
    testing.assert_transforms_agree(WrongDerivative.apply, torch.ones(3).double())
