"""Properties of every layer: shapes, purity, keys, dtypes, memory formats, errors by name."""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from funcnets import core, precision, random, tree
from funcnets.core import Layer, LayerError, Params, State, sequential
from funcnets.testing._difference import Difference, assert_close
from funcnets.testing._values import generator, random_like, random_values

KEY, PATH = random.key(7), ("outer", "inner")
NOTHING = r"(?!)"  # matches no name
# A narrow layer's units can all be dead or dropped in one draw, but hardly in so many.
GRADIENT_DRAWS = 5


@dataclass(frozen=True)
class Case:
    """A layer, the shape of an input, and what is to be expected of it; see `check_layer`."""

    layer: Layer
    shape: tuple[int, ...]
    without_gradient: str
    constant_state: str
    any_rank: bool

    def example(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        """Return an input."""
        drawn = torch.randn(self.shape, generator=generator(seed), dtype=torch.float64)
        return drawn.to(dtype)

    @cached_property
    def values(self) -> tuple[Params, State]:
        """Random parameters and statistics in float64."""
        return random_values(self.layer, self.example())

    def apply(self, x: Tensor, train: bool, key: Tensor | None = KEY) -> tuple[Tensor, State]:
        """Return what the layer makes of `x` with these values."""
        return self.layer.apply(*self.values, x, train=train, key=key)

    def check_error(self, message: str, x: Any, values: Any, **options: Any) -> None:
        """Raise AssertionError unless the layer refuses this by its name in a network."""
        params, state = ({"outer": {"inner": each}} for each in values)
        nested = sequential(outer=sequential(inner=self.layer))
        _check_error(message, partial(nested.apply, params, state, x, **options), PATH)

    def check_init_error(self, message: str, x: Any) -> None:
        """As `check_error`, of `init`."""
        nested = sequential(outer=sequential(inner=self.layer))
        _check_error(message, partial(nested.init, KEY, x), PATH)


def _check_error(message: str, call: Callable[[], Any], path: tuple[str, ...]) -> None:
    try:
        call()
    except LayerError as error:
        right = error.path[: len(path)] == path
        require(right, f"the error has the path {error.path}, not that of the layer: {error}")
        require(message in str(error), f"the error should name {message}: {error}")
        return
    except Exception as error:
        raise Difference(f"raised {error!r}; expected a LayerError that names {message}") from error
    raise Difference(f"raised nothing; expected a LayerError that names {message}")


def require(holds: bool, problem: str) -> None:
    """Raise Difference unless this holds."""
    if not holds:
        raise Difference(problem)


def same_bits(actual: Any, expected: Any, quantity: str) -> None:
    """Raise Difference unless two trees have the same bits."""
    assert_close(actual, expected, 0.0, quantity)


def modes(check: Callable[[Case, bool], None]) -> Callable[[Case], None]:
    """Return the check made in training and in evaluation."""

    def both(case: Case) -> None:
        for train in (True, False):
            try:
                check(case, train)
            except Difference as difference:
                when = "in training" if train else "in evaluation"
                difference.problem = f"{when}, {difference}"
                difference.quantity = ""
                raise

    return both


@modes
def _declared_output(case: Case, train: bool) -> None:
    declared = core.eval_shape(case.layer, *case.values, case.example())
    actual, _ = case.apply(case.example(), train)
    for what in ("shape", "dtype"):
        a, b = getattr(actual, what), getattr(declared, what)
        require(a == b, f"the output has {what} {a}, on the meta device {b}")
    require(declared.is_meta, "the output of a meta tensor is no meta tensor")


@modes
def _unchanged_inputs(case: Case, train: bool) -> None:
    params, state, x, key = given = (*case.values, case.example(), KEY.clone())
    before = tree.map(torch.clone, given)
    output, state = case.layer.apply(params, state, x, train=train, key=key)
    # Writing to what comes back must not reach what was given either, but for an evaluation's
    # state and a layer that gives its input back.
    changing = [
        leaf
        for name, leaf in tree.flatten_named(state).items()
        if train and not re.fullmatch(case.constant_state, name)
    ]
    for leaf in changing:
        leaf.zero_()
    require(output.shape[0] == case.shape[0], f"the output has a batch of {output.shape[0]}")
    arguments = ("params", "state", "x", "key")
    after, expected = (dict(zip(arguments, each, strict=True)) for each in (given, before))
    same_bits(after, expected, "arguments after the call")


def _init_keeps_inputs(case: Case) -> None:
    given = {"input": case.example(), "key": KEY.clone()}
    case.layer.init(given["key"], given["input"])
    same_bits(given, {"input": case.example(), "key": KEY}, "arguments after init")


def _state(case: Case) -> None:
    _, state = case.values
    same_bits(case.apply(case.example(), False)[1], state, "state after evaluation")
    trained = tree.flatten_named(case.apply(case.example(), True)[1])
    before = tree.flatten_named(state)
    require(trained.keys() == before.keys(), f"training leaves state {[*trained]} of {[*before]}")
    for name, leaf in trained.items():
        require(leaf.shape == before[name].shape, f"training changes the shape of `{name}`")
        moved = not torch.equal(leaf, before[name])
        constant = re.fullmatch(case.constant_state, name) is not None
        require(moved != constant, f"training {'moves' if moved else 'keeps'} `{name}`")


def _same_key_same_numbers(case: Case) -> None:
    x = case.example()
    first, again, other = (case.apply(x, True, key)[0] for key in (KEY, KEY.clone(), random.key(8)))
    same_bits({"output": again}, {"output": first}, "a second call with the same key")
    differs = not torch.equal(first, other)
    stochastic = case.layer.stochastic
    says = f"the layer says stochastic={stochastic}, and another key gives "
    require(differs == stochastic, says + ("other numbers" if differs else "the same numbers"))


def _evaluation_ignores_key(case: Case) -> None:
    without, with_key = (case.apply(case.example(), False, key)[0] for key in (None, KEY))
    same_bits({"output": with_key}, {"output": without}, "evaluation with a key")


def _initial_values(case: Case) -> None:
    x = case.example()
    first, again, other = (case.layer.init(random.key(seed), x)[0] for seed in (1, 1, 2))
    same_bits(first, again, "init with the same key")
    named = tree.flatten_named(other)
    for name, leaf in tree.flatten_named(first).items():
        constant = leaf.unique().numel() == 1
        same = torch.equal(leaf, named[name])
        require(constant == same, f"another key gives `{name}` the same initial values")


def _init_on_meta(case: Case) -> None:
    x = case.example()
    expected, actual = case.layer.init(KEY, x), case.layer.init(KEY, core.to_meta(x))
    same_bits(actual, expected, "init with a meta tensor")


def _gradients(case: Case) -> None:
    """In some of a few draws."""
    without = set(tree.names(case.values[0]))
    expected = {name for name in without if re.fullmatch(case.without_gradient, name)}
    for seed in range(GRADIENT_DRAWS):
        for name, gradient in _gradients_of(case, seed).items():
            require(bool(gradient.isfinite().all()), f"the gradient of `{name}` is not finite")
            if gradient.abs().max() > 1e-9:
                without.discard(name)
        if without == expected:
            return
    zero, other = sorted(without - expected), sorted(expected - without)
    require(not zero, f"the gradient of {tree.listed(zero)} is 0")
    require(not other, f"the gradient of {tree.listed(other)} should be 0")


def _gradients_of(case: Case, seed: int) -> dict[str, Tensor]:
    x = case.example(seed=seed)
    params, state = random_values(case.layer, x, seed)

    def loss(params: Params) -> Tensor:
        y, _ = case.layer.apply(params, state, x, train=True, key=random.key(seed))
        return torch.sum(y * random_like(y, seed))

    return tree.flatten_named(torch.func.grad(loss)(params))


@modes
def _dtypes(case: Case, train: bool) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = case.example(dtype)
        params, state = case.layer.init(KEY, x)
        output, after = case.layer.apply(params, state, x, train=train, key=KEY)
        precise = torch.promote_types(dtype, torch.float32)
        for what, values, right in (
            ("parameter", params, dtype),
            ("statistic", (state, after), precise),
            ("output", {"": output}, dtype),
        ):
            for name, leaf in tree.flatten_named(values).items():
                fits = leaf.dtype == right or not leaf.is_floating_point()
                require(fits, f"{what} {name} has dtype {leaf.dtype} for an input of {dtype}")
        require(bool(output.isfinite().all()), f"the output is not finite in {dtype}")


def _examples_alone(case: Case) -> None:
    x = case.example()
    whole, _ = case.apply(x, False)
    for i in (0, len(x) - 1):
        alone, _ = case.apply(x[i : i + 1], False)
        names = "alone, in the batch"
        quantity = f"output of example {i} in evaluation"
        assert_close({"": alone}, {"": whole[i : i + 1]}, 1e-12, quantity, names=names)


def _empty_batch(case: Case) -> None:
    x = case.example()
    whole, _ = case.apply(x, False)
    empty, _ = case.apply(x[:0], False)
    expected = (0, *whole.shape[1:])
    require(tuple(empty.shape) == expected, f"an empty batch gives shape {tuple(empty.shape)}")


@modes
def _channels_last(case: Case, train: bool) -> None:
    x = case.example()
    if x.ndim != 4:
        return
    expected = case.apply(x, train)
    actual = case.apply(precision.in_channels_last(x), train)
    assert_close(actual, expected, 1e-12, "channels_last", names="channels_last, contiguous")
    if actual[0].ndim == 4:
        kept = actual[0].is_contiguous(memory_format=torch.channels_last)
        require(kept, "the output of an input in channels_last isn't in channels_last")


def _vmap(case: Case) -> None:
    """Also: torch has a batching rule for all that a layer does; where it has none, it warns."""
    x = torch.stack([case.example(seed=seed) for seed in range(2)])
    if x.ndim == 5:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    call = partial(case.apply, train=True)
    mapped = torch.func.vmap(call, randomness="same")(x)
    alone = tree.map(lambda *each: torch.stack(each), *map(call, x))
    assert_close(mapped, alone, 1e-9, "vmap over batches", names="vmap, loop")


def _integer_input(case: Case) -> None:
    x = torch.zeros(case.shape, dtype=torch.uint8)
    case.check_error("torch.uint8", x, case.values)
    case.check_init_error("torch.uint8", x)


def _array_input(case: Case) -> None:
    message = "got ndarray input, expected a tensor"
    array: Any = case.example().numpy()
    case.check_error(message, array, case.values)
    _check_error(message, partial(sequential(case.layer).init, KEY, array), ())


def _wrong_rank(case: Case) -> None:
    if not case.any_rank:
        x = case.example()[0]
        case.check_error(str(tuple(x.shape)), x, case.values)
        case.check_init_error("(N, C", x)


def _wrong_dtype(case: Case) -> None:
    if case.values[0]:
        values = random_values(case.layer, case.example(torch.float32))
        for message in ("torch.float64", "torch.float32"):
            case.check_error(message, case.example(), values, train=True, key=KEY)


def _wrong_channels(case: Case) -> None:
    if case.values[0] and len(case.shape) > 1:
        x = torch.cat([case.example()] * 3, dim=1)
        case.check_error(str(case.shape[1] * 3), x, case.values, train=True, key=KEY)


def _missing_key(case: Case) -> None:
    if case.layer.stochastic:
        case.check_error("key", case.example(), case.values, train=True)


def _missing_parameters(case: Case) -> None:
    if case.values[0]:
        case.check_error("another network's", case.example(), ({}, {}), train=True, key=KEY)


CHECKS: dict[str, Callable[[Case], None]] = {
    "declared_output": _declared_output,
    "unchanged_inputs": _unchanged_inputs,
    "init_keeps_inputs": _init_keeps_inputs,
    "state": _state,
    "same_key_same_numbers": _same_key_same_numbers,
    "evaluation_ignores_key": _evaluation_ignores_key,
    "initial_values": _initial_values,
    "init_on_meta": _init_on_meta,
    "gradients": _gradients,
    "dtypes": _dtypes,
    "examples_alone": _examples_alone,
    "empty_batch": _empty_batch,
    "channels_last": _channels_last,
    "vmap": _vmap,
    "integer_input": _integer_input,
    "array_input": _array_input,
    "wrong_rank": _wrong_rank,
    "wrong_dtype": _wrong_dtype,
    "wrong_channels": _wrong_channels,
    "missing_key": _missing_key,
    "missing_parameters": _missing_parameters,
}

ERRORS = tuple(CHECKS)[[*CHECKS].index("integer_input") :]
"""Names of the checks of errors.  A lifted module raises PyTorch's own errors."""


def check_layer(
    layer: Layer,
    shape: tuple[int, ...],
    *,
    without_gradient: str = NOTHING,
    constant_state: str = NOTHING,
    any_rank: bool = False,
    skip: Collection[str] = (),
) -> None:
    """Raise AssertionError unless a layer keeps the promises of all layers.

    The checks are, by name: `declared_output` (shape and dtype on the meta device are the actual
    ones), `unchanged_inputs` and `init_keeps_inputs`, `state` (evaluation keeps it, training moves
    it), `same_key_same_numbers`, `evaluation_ignores_key`, `initial_values` (the key decides
    them), `init_on_meta`, `gradients` (of every parameter, finite and not 0), `dtypes` (float64,
    float32 and bfloat16), `examples_alone` (in evaluation, an example's output doesn't depend on
    the batch), `empty_batch`, `channels_last`, `vmap`, and of errors that name the layer in a
    network `integer_input`, `array_input`, `wrong_rank`, `wrong_dtype`, `wrong_channels`,
    `missing_key` and `missing_parameters`.  All that fail are listed.

    Args:
        layer: the layer, or a whole network.
        shape: shape of an input, (N, ...), N at least 2.
        without_gradient: regular expression for names of parameters whose gradient is 0 in
            training, such as biases before a batch norm.
        constant_state: regular expression for names of statistics that training keeps.
        any_rank: True if inputs may have any number of dimensions.
        skip: names of checks to leave out, such as `testing.ERRORS`, those of errors, which a
            lifted module leaves to PyTorch.

    Raises ValueError for an unknown name in `skip`.

    >>> from funcnets import layers, testing
    >>> testing.check_layer(layers.linear(3), (4, 5))
    """
    core.check_layer(layer, "the layer")
    if unknown := [name for name in skip if name not in CHECKS]:
        raise ValueError(f"skip: {unknown[0]!r} is not one of {', '.join(CHECKS)}")
    case = Case(layer, shape, without_gradient, constant_state, any_rank)
    if problems := [*_problems(case, skip)]:
        raise AssertionError(f"{layer.kind}, input {shape}:\n" + "\n".join(problems))


def _problems(case: Case, skip: Collection[str]) -> Iterator[str]:
    for name, check in CHECKS.items():
        if name in skip:
            continue
        try:
            check(case)
        except AssertionError as error:
            yield f"  {name}: {error}"
        except Exception as error:
            yield f"  {name}: raised {error!r}"
