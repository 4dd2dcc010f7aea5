"""Random functions of PyTorch answered from keys, in a module's constructor and forward pass."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from funcnets import random
from funcnets._torch import DispatchMode
from funcnets.core import LayerError
from funcnets.layers.normalization import is_vmapped

NextKey = Callable[[], Tensor]
"""Function that returns a new key for each draw."""

Draw = Callable[..., Tensor]
"""Stand-in `draw(next_key, *args, **kwargs)` of a random function with these arguments."""


def multiply_by_noise(key: Tensor, x: Tensor, rate: float, shape: Sequence[int]) -> Tensor:
    """Return x · mask / (1 - rate), where the mask of `shape` is 0 with probability `rate`."""
    keep = random.bernoulli(key, 1 - rate, tuple(shape))
    return x * keep / ((1 - rate) or 1)


def feature_shape(x: Tensor, spatial: int | None = None) -> tuple[int, ...]:
    """Return the shape of a mask with one value for each feature map of `x`.

    `spatial` is the number of spatial dimensions, if an input without a batch dimension is allowed.
    """
    leading = 1 if x.ndim - 1 == spatial else 2
    return (*x.shape[:leading], *[1] * (x.ndim - leading))


def _fill(x: Tensor, value: Tensor) -> Tensor:
    if is_vmapped(value) and not is_vmapped(x):
        raise LayerError(
            "draws in place, by different keys under vmap, into a tensor that vmap doesn't map "
            "over: use torch.rand, torch.randn or torch.bernoulli, which return a new tensor"
        )
    return x.copy_(value)


def _uniform_(
    next_key: NextKey, x: Tensor, low: float = 0.0, high: float = 1.0, **bounds: float
) -> Tensor:
    low, high = bounds.get("from", low), bounds.get("to", high)
    return _fill(x, random.uniform(next_key(), tuple(x.shape), x.dtype, low, high))


def _normal_(next_key: NextKey, x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return _fill(x, mean + std * random.normal(next_key(), tuple(x.shape), x.dtype))


def _exponential_(next_key: NextKey, x: Tensor, lambd: float = 1.0) -> Tensor:
    uniform = random.uniform(next_key(), tuple(x.shape), x.dtype)
    return _fill(x, -torch.log1p(-uniform) / lambd)


def _bernoulli_(next_key: NextKey, x: Tensor, p: Any = 0.5) -> Tensor:
    return _fill(x, random.bernoulli(next_key(), p, tuple(x.shape)))


def _bernoulli(next_key: NextKey, x: Tensor, p: float | None = None) -> Tensor:
    return random.bernoulli(next_key(), x if p is None else p, tuple(x.shape)).to(x.dtype)


def _factory(draw: Callable[..., Tensor]) -> Draw:
    def factory(
        next_key: NextKey,
        *size: Any,
        dtype: torch.dtype | None = None,
        device: Any = None,
        **options: Any,
    ) -> Tensor:
        key = next_key()
        shape = options.get("size", size[0] if size and not isinstance(size[0], int) else size)
        drawn = draw(key, tuple(shape), dtype or torch.get_default_dtype())
        return drawn.to(device or key.device)

    return factory


def _factory_like(draw: Callable[..., Tensor]) -> Draw:
    def factory_like(
        next_key: NextKey, x: Tensor, *, dtype: torch.dtype | None = None, **options: Any
    ) -> Tensor:
        drawn = draw(next_key(), tuple(x.shape), dtype or x.dtype)
        return drawn.to(options.get("device") or x.device)

    return factory_like


def _dropout(spatial: int | None, *, by_feature: bool) -> Draw:
    def dropout(
        next_key: NextKey,
        x: Tensor,
        p: float = 0.5,
        train: bool = True,
        inplace: bool = False,
        *,
        training: bool | None = None,
    ) -> Tensor:
        if not (train if training is None else training) or p == 0:
            return x
        shape = feature_shape(x, spatial) if by_feature else tuple(x.shape)
        y = multiply_by_noise(next_key(), x, p, shape)
        return x.copy_(y) if inplace else y

    return dropout


def _in_place(draw: Draw) -> Draw:
    return lambda next_key, x, *args, **kwargs: x.copy_(draw(next_key, x, *args, **kwargs))


_feature_dropout = _dropout(None, by_feature=True)

DRAWS: dict[str, Draw] = {
    "uniform_": _uniform_,
    "normal_": _normal_,
    "exponential_": _exponential_,
    "bernoulli_": _bernoulli_,
    "bernoulli": _bernoulli,
    "rand": _factory(random.uniform),
    "randn": _factory(random.normal),
    "rand_like": _factory_like(random.uniform),
    "randn_like": _factory_like(random.normal),
    "dropout": _dropout(None, by_feature=False),
    "dropout_": _in_place(_dropout(None, by_feature=False)),
    "dropout1d": _dropout(1, by_feature=True),
    "dropout2d": _feature_dropout,  # an input of three dimensions is a batch, as in PyTorch
    "dropout3d": _dropout(3, by_feature=True),
    "feature_dropout": _feature_dropout,
    "feature_dropout_": _in_place(_feature_dropout),
}
"""Stand-ins of random functions, by the name of the function."""

WITHOUT_STAND_IN = {
    *("alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
    *("binomial", "cauchy_", "geometric_", "log_normal_", "multinomial", "normal", "poisson"),
    *("randint", "randint_like", "random_", "randperm", "rrelu", "rrelu_", "gumbel_softmax"),
    *("fractional_max_pool2d", "fractional_max_pool3d"),
    *("multi_head_attention_forward", "scaled_dot_product_attention"),
}
"""Names of the other random functions."""


def stand_in(name: str, next_key: NextKey, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what the stand-in of the function called `name` draws.

    Raises LayerError for a generator, or a tensor for the result, among the arguments.
    """
    if kwargs.get("generator") is not None or kwargs.get("out") is not None:
        raise LayerError(f"{name} is called with `generator` or `out`, where a key can't be used")
    given = {option: value for option, value in kwargs.items() if option not in _UNUSED}
    first = [given.pop("input")] if "input" in given else []
    return DRAWS[name](next_key, *first, *args, **given)


_UNUSED = ("generator", "out", "layout", "pin_memory", "memory_format", "requires_grad")


def is_random(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return False if one of the functions without stand-in doesn't draw for these arguments."""
    if function is F.scaled_dot_product_attention:
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0))
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except ValueError:  # functions in C++ have no signature
        return True
    bound.apply_defaults()
    given = bound.arguments
    return bool(given.get("training", True) and given.get("dropout_p", True))


class KeyedConstruction(DispatchMode):
    """While entered, the n-th draw is by `fold_in(key, n)`, and PyTorch's generator is left alone.

    Without a key, draws in place give zeros, for a caller that needs only names and shapes.

    Raises LayerError for a random operation that has no stand-in.
    """

    def __init__(self, key: Tensor | None) -> None:
        super().__init__()
        self._key, self._count = key, 0

    def _next_key(self) -> Tensor:
        self._count += 1
        key = random.key(0) if self._key is None else self._key
        return random.fold_in(key, self._count - 1)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return operation(*args, **kwargs)
        name = operation.overloadpacket.__name__
        if name not in DRAWS:
            raise LayerError(
                f"lift: a constructor draws by {operation}, which has no keyed stand-in"
            )
        if self._key is None and name.endswith("_"):
            return cast(Tensor, args[0]).zero_()
        return stand_in(name, self._next_key, args, kwargs)
