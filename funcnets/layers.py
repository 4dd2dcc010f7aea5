"""The layers that networks are made of: convolutions, batch norm, dropout, pools and the like.

Each is a function of hyper-parameters that gives a `Layer`.  What an input or a parameter tree
must look like is checked here, so that an error names the layer in which it happened.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor
from torch._C import _functorch

from funcnets import initializers, random
from funcnets._validate import check, check_non_negative, is_whole
from funcnets.core import Apply, Init, Layer, LayerError, Params, State, check_input, shown
from funcnets.initializers import Initializer

Size = int | tuple[int, int]


def _pair(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple | list) else (size, size)


def _check_counts(kind: str, **counts: Any) -> None:
    for name, count in counts.items():
        check(f"{kind}: {name}", count, lambda n: is_whole(n, 1), "a whole number, 1 or more")


def _check_sizes(kind: str, least: int, **sizes: Any) -> None:
    for name, size in sizes.items():
        sides = _pair(size)
        if len(sides) != 2 or not all(is_whole(side, least) for side in sides):
            raise ValueError(
                f"{kind}: {name} is {size!r}; expected a whole number or two, {least} or more"
            )


def _kind(name: str, *arguments: Any, **options: tuple[Any, Any]) -> str:
    """`conv2d(64, 7, stride=2)`: the arguments, and of the options (value, default) the unusual."""
    unusual = [f"{key}={value}" for key, (value, default) in options.items() if value != default]
    return f"{name}({', '.join([*map(str, arguments), *unusual])})"


def _no_leaves(key: Tensor, x: Tensor) -> tuple[Params, State]:
    return {}, {}


def _leaf(
    kind: str,
    apply: Apply,
    init: Init = _no_leaves,
    *,
    ranks: tuple[int, ...] = (4,),
    params: tuple[str, ...] = (),
    state: tuple[str, ...] = (),
    **options: Any,
) -> Layer:
    """A layer without parts, whose inputs are checked for rank and type, and trees for leaves.

    `params` and `state` are the names of its leaves.
    """
    leaves = {"params": params, "state": state}

    def check_map(x: Tensor) -> None:
        check_input(kind, x)
        if not x.is_floating_point():
            raise LayerError(
                f"{kind}: got {x.dtype} input, expected floating point: "
                "convert images with funcnets.data.prepare, or x.float() / 255"
            )
        if ranks and x.ndim not in ranks:
            layout = " or ".join({2: "(N, C)", 4: "(N, C, H, W)"}[rank] for rank in ranks)
            raise LayerError(f"{kind}: got an input of shape {shown(x)}, expected {layout}")

    def checked_init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        check_map(x)
        return init(key, x)

    def checked_apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        check_map(x)
        _check_leaves(kind, leaves, params=params, state=state)
        return apply(params, state, x, train=train, key=key)

    return Layer(kind, checked_init, checked_apply, **options)


def _check_leaves(kind: str, expected: dict[str, tuple[str, ...]], **given: Any) -> None:
    for which, names in expected.items():
        for name in names:
            if name not in given[which]:
                raise LayerError(
                    f"{kind}: its part of {which} is {list(given[which])}, without {name!r}: give "
                    "apply the params and the state, in this order, that the network's init gave; "
                    "these are another network's, or not in their places"
                )


def _function(
    kind: str, function: Callable[[Tensor], Tensor], ranks: tuple[int, ...] = ()
) -> Layer:
    """A layer without parameters, that does the same in training and evaluation."""

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return function(x), {}

    return _leaf(kind, apply, ranks=ranks)


def _check_weight(
    kind: str, x: Tensor, weight: Tensor, expected: tuple[int, ...], channels: int, unit: str
) -> None:
    if weight.shape != expected:
        raise LayerError(
            f"{kind}: its weight has shape {tuple(weight.shape)}, expected {expected}: "
            "these parameters are another network's"
        )
    if x.shape[1] != channels:
        raise LayerError(
            f"{kind}: got {x.shape[1]} {unit}, expected {channels} "
            f"(its weight has shape {tuple(weight.shape)})"
        )
    if x.dtype != weight.dtype:
        raise LayerError(
            f"{kind}: got {x.dtype} input and {weight.dtype} weights: cast one of them"
        )


def _check_fits(kind: str, x: Tensor, kernel: tuple[int, ...], padding: tuple[int, ...]) -> None:
    smallest = tuple(max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True))
    if any(side < least for side, least in zip(x.shape[2:], smallest, strict=True)):
        raise LayerError(
            f"{kind}: its input is {x.shape[2]}×{x.shape[3]}, and must be at least "
            f"{smallest[0]}×{smallest[1]}: the image is too small for the network"
        )


def _weights(
    key: Tensor,
    shape: tuple[int, ...],
    x: Tensor,
    initializer: Initializer | None,
    bias: bool,
    bias_initializer: Initializer | None,
) -> Params:
    """Weight and bias of a convolution or a linear layer, on the key's device, in x's dtype."""
    weight_key, bias_key = random.split(key)
    params = {"weight": (initializer or initializers.xavier_uniform())(weight_key, shape, x.dtype)}
    if bias:
        bound = initializers.fans(shape)[0] ** -0.5
        bias_initializer = bias_initializer or initializers.uniform(bound)
        params["bias"] = bias_initializer(bias_key, shape[:1], x.dtype)
    return params


def _weight_names(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def conv2d(
    channels: int,
    kernel: Size,
    stride: Size = 1,
    padding: Size = 0,
    *,
    dilation: Size = 1,
    groups: int = 1,
    bias: bool = True,
    initializer: Initializer | None = None,
    bias_initializer: Initializer | None = None,
) -> Layer:
    """Two-dimensional convolution, (N, C, H, W) -> (N, channels, H', W'), as `torch.nn.Conv2d`.

    Leaves: `weight` (channels, C / groups, kh, kw), Xavier uniform unless an initializer is given;
    `bias` (channels,), uniform in ±1/√fan_in.

    Raises ValueError for a number that is too small or not whole, and LayerError, from `init`, for
    channels that can't be divided into groups.
    """
    kind = _kind(
        "conv2d", channels, kernel, stride=(stride, 1), padding=(padding, 0),
        dilation=(dilation, 1), groups=(groups, 1), bias=(bias, True),
    )  # fmt: skip
    _check_counts(kind, channels=channels, groups=groups)
    _check_sizes(kind, 1, kernel=kernel, stride=stride, dilation=dilation)
    _check_sizes(kind, 0, padding=padding)
    extent = tuple(d * (k - 1) + 1 for d, k in zip(_pair(dilation), _pair(kernel), strict=True))

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        if channels % groups or x.shape[1] % groups:
            raise LayerError(
                f"{kind}: {x.shape[1]} channels in and {channels} out can't be convolved in "
                f"{groups} groups: channels must be a multiple of groups"
            )
        shape = (channels, x.shape[1] // groups, *_pair(kernel))
        return _weights(key, shape, x, initializer, bias, bias_initializer), {}

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        weight = params["weight"]
        inner = weight.shape[1]
        expected = (channels, inner, *_pair(kernel))
        _check_weight(kind, x, weight, expected, inner * groups, "channels")
        _check_fits(kind, x, extent, _pair(padding))
        bias_value = params["bias"] if bias else None
        return F.conv2d(x, weight, bias_value, stride, padding, dilation, groups), {}

    return _leaf(kind, apply, init, params=_weight_names(bias))


def linear(
    features: int,
    *,
    bias: bool = True,
    initializer: Initializer | None = None,
    bias_initializer: Initializer | None = None,
) -> Layer:
    """Linear map, (N, C) -> (N, features), as `torch.nn.Linear`.

    Leaves: `weight` (features, C), Xavier uniform unless an initializer is given; `bias`
    (features,), uniform in ±1/√fan_in.

    Raises ValueError unless `features` is a whole number, 1 or more.
    """
    kind = _kind("linear", features, bias=(bias, True))
    _check_counts(kind, features=features)

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        return _weights(key, (features, x.shape[1]), x, initializer, bias, bias_initializer), {}

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        weight = params["weight"]
        _check_weight(kind, x, weight, (features, weight.shape[1]), weight.shape[1], "features")
        return F.linear(x, weight, params["bias"] if bias else None), {}

    return _leaf(kind, apply, init, ranks=(2,), params=_weight_names(bias))


def batch_norm(momentum: float = 0.1, eps: float = 1e-5, *, unbiased: bool = True) -> Layer:
    """Batch normalisation per channel, of (N, C, H, W) or (N, C), as `torch.nn.BatchNorm2d`/`1d`.

    Training normalises by the batch's mean and biased variance, and gives running statistics
    `(1 - momentum)·old + momentum·batch`, whose variance is unbiased (torch's convention) or,
    with `unbiased=False`, biased.  Evaluation normalises by the running statistics.  Statistics
    are at least float32, whatever the input.

    Leaves: `weight`, `bias` in params; `running_mean`, `running_var` in state; all (C,).
    Raises ValueError for a momentum outside [0, 1] or an eps that is negative or not finite, and
    LayerError in training where a channel has one value or none: it has no variance.
    Ioffe and Szegedy, Batch Normalization, 2015, algorithms 1 and 2.
    """
    kind = _kind("batch_norm", momentum=(momentum, 0.1), eps=(eps, 1e-5), unbiased=(unbiased, True))
    check(f"{kind}: momentum", momentum, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    check_non_negative(**{f"{kind}: eps": eps})

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        channels, precise = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        zeros, ones = initializers.zeros(), initializers.ones()
        params = {
            "weight": ones(key, (channels,), x.dtype),
            "bias": zeros(key, (channels,), x.dtype),
        }
        return params, {
            "running_mean": zeros(key, (channels,), precise),
            "running_var": ones(key, (channels,), precise),
        }

    def track(state: State, mean: Tensor, variance: Tensor, count: int) -> State:
        _check_count(kind, count)
        correction = count / (count - 1) if unbiased else 1.0
        batch = {"running_mean": mean, "running_var": variance * correction}
        return {
            name: torch.lerp(state[name], value.to(state[name].dtype), momentum)
            for name, value in batch.items()
        }

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        weight, bias = params["weight"], params["bias"]
        _check_weight(kind, x, weight, (weight.shape[0],), weight.shape[0], "channels")
        mean, variance = state["running_mean"], state["running_var"]
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        if train:
            _check_not_split(kind, x, weight)
            count = x.numel() // x.shape[1]
            _check_count(kind, count)  # before torch warns of it
            mean, variance = moments(x)
            state = track(state, mean, variance, count)
        scale = weight * torch.rsqrt(variance + eps)
        shift = bias - mean * scale
        channel = (..., *[None] * (x.ndim - 2))
        return torch.addcmul(shift[channel], precise, scale[channel]).to(x.dtype), state

    return _leaf(
        kind,
        apply,
        init,
        ranks=(2, 4),
        params=("weight", "bias"),
        state=("running_mean", "running_var"),
        track=track,
    )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of (N, C, H, W) or (N, C): (C,) each.

    At least float32, whatever the input; what batch norm normalises by in training.
    """
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(precise, [0, *range(2, x.ndim)], correction=0)
    return mean, variance


def _check_count(kind: str, count: int) -> None:
    """Refuse a batch that has no variance."""
    if count < 2:
        raise LayerError(
            f"{kind}: got {'one value' if count else 'no value'} per channel in training: its "
            "variance is undefined; use a larger batch, or train=False"
        )


def _check_not_split(kind: str, x: Tensor, weight: Tensor) -> None:
    """Refuse single examples of a batch that `vmap` has taken apart, each with its statistics."""
    if x.shape[0] == 1 and is_vmapped(x) and not is_vmapped(weight):
        raise LayerError(
            f"{kind}: in training under vmap over examples, each would be normalised by its own "
            "statistics: use funcnets.transforms.per_example_gradients(..., statistics=...), or "
            "funcnets.transforms.frozen_statistics(net)"
        )


def is_vmapped(x: Tensor) -> bool:
    """Whether `x` is one of many that `torch.func.vmap` runs at once."""
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False


def dropout(rate: float = 0.5) -> Layer:
    """In training, each element is zero with probability `rate`, and the rest grow by 1/(1 - rate).

    The mask is `random.bernoulli(key, 1 - rate, x.shape)`: the key decides it, whatever the device.
    Raises ValueError for a rate outside [0, 1).  Srivastava et al., Dropout, 2014.
    """
    kind = _kind("dropout", rate)
    check(f"{kind}: rate", rate, lambda value: 0 <= value < 1, "a number in [0, 1)")

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if not train or rate == 0:
            return x, {}
        if key is None:
            raise LayerError(
                f"{kind}: needs a key in training: "
                "apply(params, state, x, train=True, key=funcnets.random.key(0))"
            )
        keep = random.bernoulli(key, 1 - rate, tuple(x.shape))
        return x * keep / (1 - rate), {}

    return _leaf(kind, apply, ranks=(), stochastic=True)


def _pool(
    name: str,
    function: Callable[..., Tensor],
    kernel: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
) -> Layer:
    stride = kernel if stride is None else stride
    kind = _kind(
        name, kernel, stride=(stride, kernel), padding=(padding, 0), ceil_mode=(ceil_mode, False)
    )
    _check_sizes(kind, 1, kernel=kernel, stride=stride)
    _check_sizes(kind, 0, padding=padding)
    if any(2 * p > k for p, k in zip(_pair(padding), _pair(kernel), strict=True)):
        raise ValueError(f"{kind}: padding is {padding!r}; expected half of the kernel or less")

    def pool(x: Tensor) -> Tensor:
        _check_fits(kind, x, _pair(kernel), _pair(padding))
        return function(x, kernel, stride, padding, ceil_mode=ceil_mode)

    return _function(kind, pool, ranks=(4,))


def max_pool(
    kernel: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
) -> Layer:
    """Largest value of each window, (N, C, H, W) -> (N, C, H', W'), as `torch.nn.MaxPool2d`.

    Raises ValueError for a size that is too small or not whole, or padding beyond half the kernel.
    """
    return _pool("max_pool", F.max_pool2d, kernel, stride, padding, ceil_mode)


def avg_pool(
    kernel: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
) -> Layer:
    """Mean of each window, (N, C, H, W) -> (N, C, H', W'), as `torch.nn.AvgPool2d`.

    Raises ValueError for a size that is too small or not whole, or padding beyond half the kernel.
    """
    return _pool("avg_pool", F.avg_pool2d, kernel, stride, padding, ceil_mode)


def adaptive_avg_pool(size: Size) -> Layer:
    """Mean over windows chosen so that the output is `size`, as `torch.nn.AdaptiveAvgPool2d`.

    Raises ValueError for a size that is too small or not whole.
    """
    kind = _kind("adaptive_avg_pool", size)
    _check_sizes(kind, 1, size=size)
    if size in (1, (1, 1)):  # torch writes strides in this one's place, for which vmap has no rule
        return _function(kind, _mean_over_image, ranks=(4,))
    return _function(kind, lambda x: F.adaptive_avg_pool2d(x, size), ranks=(4,))


def global_avg_pool() -> Layer:
    """Mean over the image, (N, C, H, W) -> (N, C, 1, 1)."""
    return _function("global_avg_pool()", _mean_over_image, ranks=(4,))


def _mean_over_image(x: Tensor) -> Tensor:
    return reduce(x, "n c h w -> n c 1 1", "mean")


def flatten() -> Layer:
    """Everything but the batch in one dimension, (N, C, H, W) -> (N, C·H·W)."""
    return _function("flatten()", lambda x: rearrange(x, "n c h w -> n (c h w)"), ranks=(4,))


def relu() -> Layer:
    """max(x, 0)."""
    return _function("relu()", torch.relu)


def sigmoid() -> Layer:
    """1 / (1 + exp(-x))."""
    return _function("sigmoid()", torch.sigmoid)


def tanh() -> Layer:
    """The hyperbolic tangent of x."""
    return _function("tanh()", torch.tanh)
