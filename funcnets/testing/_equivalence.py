"""A layer against a module: the same values in both, and everything they compute compared."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from funcnets import interop, precision, random
from funcnets.core import Layer, Params, State, check_layer
from funcnets.interop import Rename
from funcnets.interop.state_dict import renamed
from funcnets.testing._difference import Difference, assert_close
from funcnets.testing._noise import Drawn, masked, masks, without_draws
from funcnets.testing._values import generator, random_like, randomize

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

MemoryFormat = Literal["contiguous", "channels_last"]
SIDES = "layer, module"
SHRINKING_TRIES = 60


def usual_tolerance(dtype: torch.dtype) -> float:
    """Return the tolerance of comparisons in this dtype."""
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 1e-2)


class Results(NamedTuple):
    """Output, gradients and statistics of a call; trees have the layer's names."""

    output: Tensor
    gradients: dict[str, Any]  # of sum(output * cotangent), by leaf; the input's is `input`
    statistics: State


@dataclass(frozen=True)
class Pair:
    """A layer, a copy of a module, and the values that both have."""

    layer: Layer
    module: nn.Module
    rename: Rename | None
    params: Params
    state: State
    key: Tensor

    def drawn(self, x: Tensor, mode: bool) -> list[Drawn]:
        """Return the masks that the layer's dropouts draw in training."""
        if not (mode and self.layer.stochastic):
            return []
        return masks(self.layer, self.params, self.state, x, self.key)

    def in_layer(self, params: dict[str, Tensor]) -> tuple[Params, State]:
        """Return values for the module's parameters, and its buffers, by the layer's names."""
        named = {**params, **dict(self.module.named_buffers())}
        return interop.from_state_dict(named, like=(self.params, self.state), rename=self.rename)

    def call_module(self, x: Tensor, mode: bool, drawn: list[Drawn]) -> Tensor:
        """Return the module's output, with the layer's dropout masks."""
        self.module.train(mode)
        names = partial(renamed, rename=self.rename)
        with without_draws(), masked(self.module, drawn, names):
            output: Tensor = self.module(x.clone())  # which it may write to
        return output


def pair_of(
    layer: Layer,
    module: nn.Module,
    x: Tensor,
    *,
    rename: Rename | None,
    values: Literal["random", "module"],
    seed: int,
) -> Pair:
    """Return the layer and a copy of the module with the same values, in the dtype of `x`."""
    check_layer(layer, "the layer")
    module = copy.deepcopy(module).to(x.dtype)
    if values == "random":
        randomize(module, seed)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    try:
        like = layer.init(random.key(seed), x)
        params, state = interop.from_state_dict(named, like=like, rename=rename)
    except interop.InteropError as error:
        raise Difference(str(error), quantity="names and shapes of parameters") from error
    return Pair(layer, module, rename, params, state, random.key(seed + 3))


def input_of(shape: Sequence[int], seed: int, dtype: torch.dtype) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=generator(seed + 2), dtype=torch.float64).to(dtype)


def _layer_results(pair: Pair, x: Tensor, cotangent: Tensor, mode: bool) -> Results:
    def loss(params: Params, x: Tensor) -> tuple[Tensor, tuple[Tensor, State]]:
        y, state = pair.layer.apply(params, pair.state, x, train=mode, key=pair.key)
        if y.shape != cotangent.shape:
            problem = f"has shape {tuple(y.shape)}, the module's {tuple(cotangent.shape)}"
            raise Difference(problem, quantity="output of the layer")
        return (y * cotangent).sum(), (y, state)

    gradient = torch.func.grad(loss, argnums=(0, 1), has_aux=True)
    (of_params, of_input), (output, state) = gradient(pair.params, x)
    return Results(output, {**of_params, "input": of_input}, state)


def _module_results(pair: Pair, x: Tensor, mode: bool) -> tuple[Results, Tensor]:
    """Return the module's results, which it then forgets, and the cotangent of its gradients."""
    module = pair.module
    module.zero_grad()
    x = x.clone().requires_grad_()
    with _kept_buffers(module):
        output = pair.call_module(x, mode, pair.drawn(x.detach(), mode))
        cotangent = random_like(output, 0)
        (output * cotangent).sum().backward()
        params, statistics = pair.in_layer(
            {name: _gradient(leaf) for name, leaf in module.named_parameters()}
        )
    gradients = {**params, "input": _gradient(x)}
    return Results(output.detach(), gradients, statistics), cotangent


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Give the module's buffers their values back, after the code inside."""
    before = {name: leaf.clone() for name, leaf in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, leaf in module.named_buffers():
                leaf.copy_(before[name])


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _compare(pair: Pair, x: Tensor, mode: bool, tolerance: float) -> None:
    when = "in training" if mode else "in evaluation"
    expected, cotangent = _module_results(pair, x, mode)
    actual = _layer_results(pair, x, cotangent, mode)
    for name, ours, theirs in zip(Results._fields, actual, expected, strict=True):
        ours, theirs = ({"": each} if isinstance(each, Tensor) else each for each in (ours, theirs))
        assert_close(ours, theirs, tolerance, f"{name} {when}", names=SIDES)


def assert_equivalent(
    layer: Layer,
    module: nn.Module,
    shape: "Sequence[int] | SearchStrategy[tuple[int, ...]]",
    *,
    rename: Rename | None = None,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    values: Literal["random", "module"] = "random",
    modes: Sequence[bool] = (True, False),
    batch_sizes: Sequence[int] | None = None,
    memory_formats: Sequence[MemoryFormat] = ("contiguous", "channels_last"),
    seed: int = 0,
    examples: int = 25,
) -> None:
    """Raise Difference unless a layer computes what a module computes.

    Both get the same values, by name.  Then the outputs are compared, the gradients of every
    parameter and of the input, and the running statistics; in training, with the same dropout
    masks, and in evaluation; for the batch of `shape` and for a batch of one; in each memory
    format.  The module itself is left alone.  A failure is repeated on smaller inputs; the message
    has the smallest.

    Args:
        layer: the functional network.
        module: the same as a module.
        shape: shape of the input, (N, ...), or a hypothesis strategy that draws such shapes.
        rename: from the module's names to the layer's; see `interop.Rename`.
        dtype: the dtype in which both compute.
        tolerance: largest difference, as a part of the largest value of its kind; None for 1e-9, in
            float32 1e-4.
        values: "random" for random parameters and statistics, "module" for the module's own.
        modes: True for training, False for evaluation.
        batch_sizes: sizes N that replace that of `shape`; None for this and 1.
        memory_formats: those in which an input (N, C, H, W) is given.
        seed: of values, input and masks.
        examples: number of shapes and seeds to draw, if `shape` is a strategy.

    Dropouts are paired by name, or by order where names differ.  Raises Difference, an
    AssertionError, as well where names or shapes of parameters differ, or where the module draws
    random numbers outside of dropout layers.

    >>> from funcnets import layers, testing
    >>> import torch
    >>> testing.assert_equivalent(layers.conv2d(4, 3), torch.nn.Conv2d(2, 4, 3), (3, 2, 5, 5))
    """
    options: Any = {
        "rename": rename, "dtype": dtype, "tolerance": tolerance, "values": values,
        "modes": modes, "batch_sizes": batch_sizes, "memory_formats": memory_formats,
    }  # fmt: skip
    if not isinstance(shape, Sequence):
        _draw_shapes(
            partial(_check_shape, layer, module, **options, shrinks=False), shape, examples
        )
        return
    _check_shape(layer, module, shape, seed=seed, **options)


def _check_shape(
    layer: Layer,
    module: nn.Module,
    shape: Sequence[int],
    *,
    rename: Rename | None,
    dtype: torch.dtype,
    tolerance: float | None,
    values: Literal["random", "module"],
    modes: Sequence[bool],
    batch_sizes: Sequence[int] | None,
    memory_formats: Sequence[MemoryFormat],
    seed: int,
    shrinks: bool = True,
) -> None:
    """Raise as `assert_equivalent` does, for inputs of one shape.

    Without `shrinks` a failure is not repeated on smaller inputs, as hypothesis does that.
    """
    x = input_of(shape, seed, dtype)
    pair = pair_of(layer, module, x, rename=rename, values=values, seed=seed)
    tolerance = usual_tolerance(dtype) if tolerance is None else tolerance
    for size in dict.fromkeys((shape[0], 1) if batch_sizes is None else batch_sizes):
        for memory_format in memory_formats[: None if len(shape) == 4 else 1]:
            for mode in modes:
                case = _Case(pair, seed, dtype, memory_format, mode, tolerance, shrinks)
                case.check((size, *shape[1:]), may_be_refused=mode and size != shape[0])


def _draw_shapes(check: Callable[..., None], shapes: Any, examples: int) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    @settings(max_examples=examples, deadline=None, suppress_health_check=[*HealthCheck])
    @given(shape=shapes, seed=st.integers(0, 2**31))
    def drawn(shape: tuple[int, ...], seed: int) -> None:
        check(shape, seed=seed)

    drawn()


@dataclass(frozen=True)
class _Case:
    """One comparison, for an input of any shape."""

    pair: Pair
    seed: int
    dtype: torch.dtype
    memory_format: MemoryFormat
    mode: bool
    tolerance: float
    shrinks: bool

    def check(self, shape: Sequence[int], may_be_refused: bool) -> None:
        try:
            self._compare(shape)
        except Difference as difference:
            raise self._smallest(difference, tuple(shape)) from None
        except ValueError as error:  # as batch norm refuses one value per channel
            if not may_be_refused:
                raise
            self._check_refused(shape, error)

    def _compare(self, shape: Sequence[int]) -> None:
        x = input_of(shape, self.seed, self.dtype)
        if self.memory_format == "channels_last" and x.ndim == 4:
            x = precision.in_channels_last(x)
        _compare(self.pair, x, self.mode, self.tolerance)

    def _check_refused(self, shape: Sequence[int], error: ValueError) -> None:
        x, pair = input_of(shape, self.seed, self.dtype), self.pair
        for name, call in (
            (
                "layer",
                partial(pair.layer.apply, pair.params, pair.state, x, train=True, key=pair.key),
            ),
            ("module", partial(pair.module.train(), x)),
        ):
            try:
                with torch.random.fork_rng(devices=[]), _kept_buffers(pair.module):
                    call()
            except ValueError:
                continue
            raise Difference(
                f"the {name} accepts an input of shape {tuple(shape)}, the other raises {error!r}",
                quantity="errors in training",
            )

    def _smallest(self, difference: Difference, shape: tuple[int, ...]) -> Difference:
        """Return the difference at the smallest input that has one, with that input."""
        first = shape
        tries = SHRINKING_TRIES if self.shrinks and difference.apart is not None else 0
        while smaller := self._smaller(shape, tries, difference.quantity):
            difference, shape, tries = smaller
        smallest = f", the smallest of those below {first}" if shape != first else ""
        difference.where = (
            f"\n  input: normal numbers of shape {shape}{smallest}, {self.memory_format}\n  repeat "
            f"it: assert_equivalent(layer, module, {shape}, seed={self.seed}, "
            f"modes=({self.mode},), batch_sizes=({shape[0]},), "
            f'memory_formats=("{self.memory_format}",))'
        )
        return difference

    def _smaller(
        self, shape: tuple[int, ...], tries: int, quantity: str
    ) -> tuple[Difference, tuple[int, ...], int] | None:
        for smaller in _smaller_shapes(shape):
            if (tries := tries - 1) < 0:
                return None
            try:
                self._compare(smaller)
            except Difference as difference:
                if difference.quantity == quantity:
                    return difference, smaller, tries
            except Exception:  # this network can't take such an input
                continue
        return None


def _smaller_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield shapes with one dimension halved or less by 1; channels are the values' matter."""
    for axis in (0, *range(2, len(shape))):
        for side in dict.fromkeys((shape[axis] // 2, shape[axis] - 1)):
            if side >= 1:
                yield (*shape[:axis], side, *shape[axis + 1 :])
