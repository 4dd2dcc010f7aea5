"""Strategies for hypothesis: networks, random architectures, images, keys and trees.

This module imports hypothesis, which the extra `test` installs.

>>> from hypothesis import given, settings
>>> from funcnets.testing import assert_equivalent, strategies
>>> @settings(max_examples=2, database=None, derandomize=True, deadline=None)
... @given(strategies.layers(), strategies.seeds)
... def test(architecture, seed):
...     layer, module = architecture.layer(), architecture.module()
...     assert_equivalent(layer, module, architecture.shape, seed=seed)
>>> test()
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcnets import random
from funcnets.testing._architectures import Architecture, Part, Parts, modular
from funcnets.testing._networks import Network

__all__ = ["images", "keys", "layers", "networks", "seeds", "shapes", "trees"]

seeds = st.integers(0, 2**31)
"""Seeds of keys and of values."""
_widths = st.integers(1, 6)


def _lists(elements: st.SearchStrategy[Any], least: int, most: int | None = None) -> Any:
    return st.lists(elements, min_size=least, max_size=least if most is None else most)


def shapes(least: int = 1, most: int = 8, batch: int = 1) -> st.SearchStrategy[tuple[int, ...]]:
    """Return shapes (N, C, side, side), of sides from `least` to `most`, N from `batch` to 6."""
    return st.tuples(st.integers(batch, 6), st.integers(1, 2), st.integers(least, most)).map(
        lambda drawn: (*drawn, drawn[2])
    )


@st.composite
def _vgg(draw: st.DrawFn) -> Network:
    arch = draw(_lists(st.tuples(st.integers(1, 2), _widths), 1, 4))
    shape = draw(shapes(2 ** len(arch), 2 ** len(arch) + 5))
    return Network("vgg11", {"arch": arch, "hidden": draw(_widths)}, shape)


@st.composite
def _lenet(draw: st.DrawFn, name: str) -> Network:
    narrow = {"channels": draw(_lists(_widths, 2)), "hidden": draw(_lists(st.integers(2, 9), 2))}
    options = draw(st.sampled_from([{}, narrow]))
    # Two rows that are normalised become ±1, whatever they were: no gradient is left to compare.
    return Network(name, options, draw(shapes(16, 32, batch=3)))


@st.composite
def _resnet(draw: st.DrawFn) -> Network:
    depths = draw(st.just([2, 2, 2, 2]) | _lists(st.integers(1, 2), 1, 4))
    # Where all channels of a layer are 0, batch norm after batch norm multiplies the rounding
    # of a constant by 1/√eps: several channels, and several images, keep that from happening.
    options = {"depths": depths, "channels": draw(_lists(st.integers(6, 9), len(depths)))}
    return Network("resnet18", options, draw(shapes(16, 32, batch=5)))


@st.composite
def _densenet(draw: st.DrawFn) -> Network:
    depths = draw(_lists(st.integers(1, 4), 1, 4))
    options = {"layers": depths, "growth": draw(_widths), "stem_channels": draw(st.integers(2, 6))}
    least = 2 ** (len(depths) + 1)
    return Network("densenet", options, draw(shapes(least, least + 9, batch=3)))


_NETWORKS: dict[str, st.SearchStrategy[Network]] = {
    "alexnet": st.builds(
        Network,
        st.just("alexnet"),
        st.fixed_dictionaries({"channels": _lists(_widths, 5), "hidden": st.integers(1, 9)}),
        shapes(65, 75),
    ),
    "vgg11": _vgg(),
    "nin": st.builds(
        Network,
        st.just("nin"),
        st.fixed_dictionaries({"channels": _lists(_widths, 3)}),
        shapes(67, 75),
    ),
    "googlenet": st.builds(
        Network,
        st.just("googlenet"),
        st.fixed_dictionaries(
            {
                "divisor": st.just(8),
                "variant": st.sampled_from(["reference", "paper"]),
                "depths": st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 3, 1), (2, 5, 2)]),
            }
        ),
        shapes(8, 32),
    ),
    "lenet_bn": _lenet("lenet_bn"),
    "lenet_bn_scratch": _lenet("lenet_bn_scratch"),
    "resnet18": _resnet(),
    "densenet": _densenet(),
}


def _conv2d(draw: st.DrawFn, x: Tensor) -> Part:
    groups = draw(st.sampled_from([n for n in (1, 2, 3) if x.shape[1] % n == 0]))
    options: dict[str, Any] = {"channels": groups * draw(st.integers(1, 3)), "groups": groups}
    kernel, dilation = draw(_lists(st.integers(1, 3), 2)), draw(_lists(st.integers(1, 2), 2))
    needed = [
        max(0, d * (k - 1) + 2 - side) // 2
        for d, k, side in zip(dilation, kernel, x.shape[2:], strict=True)
    ]
    padding = [least + draw(st.integers(0, 1)) for least in needed]
    options |= {"kernel": kernel, "dilation": dilation, "padding": padding}
    options["stride"] = draw(_lists(st.integers(1, 2), 2))
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    return "conv2d", {**options, "bias": draw(st.booleans())}


def _linear(draw: st.DrawFn, x: Tensor) -> Part:
    return "linear", {"features": draw(st.integers(1, 4)), "bias": draw(st.booleans())}


def _batch_norm(draw: st.DrawFn, x: Tensor) -> Part:
    # A small eps makes rounding large where a tiny batch has next to no variance.
    eps, momentum = draw(st.sampled_from([1e-3, 0.1])), draw(st.sampled_from([0.1, 0.25, 1.0]))
    return "batch_norm", {"momentum": momentum, "eps": eps, "unbiased": draw(st.booleans())}


def _own_norm(draw: st.DrawFn, x: Tensor) -> Part:
    # As for batch norm, and one value of a group has no variance at all.
    eps = draw(st.sampled_from([1e-3, 0.1]))
    parts: list[Part] = [("layer_norm", {"eps": eps})]
    groups = [n for n in (1, 2, 3) if x.shape[1] % n == 0 and x[0].numel() > n]
    if groups:
        parts.append(("group_norm", {"groups": draw(st.sampled_from(groups)), "eps": eps}))
    if x.ndim == 4 and x.shape[2:].numel() > 1:
        parts.append(("instance_norm", {"eps": eps, "affine": draw(st.booleans())}))
    return _one_of(draw, *parts)


def _noise(draw: st.DrawFn, x: Tensor) -> Part:
    rate, mode = draw(st.sampled_from([0.0, 0.25, 0.5])), draw(st.sampled_from(["row", "batch"]))
    depth: Part = ("stochastic_depth", {"rate": rate, "mode": mode})
    return _one_of(draw, ("dropout", {"rate": rate}), depth)


def _conv_transpose2d(draw: st.DrawFn, x: Tensor) -> Part:
    groups = draw(st.sampled_from([n for n in (1, 2) if x.shape[1] % n == 0]))
    stride = draw(st.integers(1, 2))
    options = {
        "channels": groups * draw(st.integers(1, 2)),
        "groups": groups,
        "kernel": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "stride": stride,
        "output_padding": draw(st.integers(0, stride - 1)),
        "bias": draw(st.booleans()),
    }
    return "conv_transpose2d", options


def _resize(draw: st.DrawFn, x: Tensor) -> Part:
    """An enlargement of small images, or a squeeze-and-excitation."""
    if max(x.shape[2:]) <= 4 and draw(st.integers(0, 3)):
        mode = draw(st.sampled_from(["nearest", "bilinear"]))
        return _one_of(draw, ("upsample", {"scale": 2, "mode": mode}), _conv_transpose2d(draw, x))
    return "squeeze_excite", {"channels": x.shape[1], "squeeze": draw(st.integers(1, 3))}


def _one_of(draw: st.DrawFn, *parts: Part) -> Part:
    return parts[draw(st.integers(0, len(parts) - 1))]


def _pool(draw: st.DrawFn, x: Tensor) -> Part:
    kernel = draw(st.integers(1, min(3, *x.shape[2:])))
    options = {
        "kernel": kernel,
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, kernel // 2)),
        "ceil_mode": draw(st.booleans()),
    }
    return draw(st.sampled_from(["max_pool", "avg_pool"])), options


def _adaptive_avg_pool(draw: st.DrawFn, x: Tensor) -> Part:
    height, width = (draw(st.integers(1, side)) for side in x.shape[2:])
    return "adaptive_avg_pool", {"size": (height, width)}


def _plain(draw: st.DrawFn, x: Tensor) -> Part:
    kinds = ["relu", "sigmoid", "tanh", *(["global_avg_pool"] if x.ndim == 4 else [])]
    return draw(st.sampled_from(kinds)), {}


def _activation(draw: st.DrawFn, x: Tensor) -> Part:
    parts: list[Part] = [
        ("gelu", {"tanh": draw(st.booleans())}),
        ("silu", {}),
        ("leaky_relu", {"slope": 0.2}),
        ("elu", {"alpha": 0.5}),
        ("softmax", {}),
    ]
    return _one_of(draw, *parts)


def _resized(parts: Parts, x: Tensor, like: Tensor) -> Parts:
    """`parts`, with a pool at the end if they don't give images of the same sides as `like`."""
    size = tuple(like.shape[2:])
    if modular(parts, x)[1].shape[2:] == size:
        return parts
    return [*parts, ("adaptive_avg_pool", {"size": size})]


def _residual(draw: st.DrawFn, x: Tensor, depth: int) -> Part:
    main = _parts(draw, x, depth)
    y = modular(main, x)[1]
    if y.shape == x.shape and draw(st.booleans()):
        return "residual", {"main": main, "shortcut": None}
    project: Part = ("linear", {"features": y.shape[1], "bias": draw(st.booleans())})
    if x.ndim == 4:
        project = ("conv2d", {"channels": y.shape[1], "kernel": 1})
    return "residual", {"main": main, "shortcut": _resized([project], x, y)}


def _sequential(draw: st.DrawFn, x: Tensor, depth: int) -> Part:
    return "sequential", {"main": _parts(draw, x, depth)}


def _concat(draw: st.DrawFn, x: Tensor, depth: int) -> Part:
    first, *rest = (_parts(draw, x, depth) for _ in range(draw(st.integers(1, 3))))
    like = modular(first, x)[1]
    return "concat", {"parts": [first, *(_resized(parts, x, like) for parts in rest)]}


def _dense(draw: st.DrawFn, x: Tensor, depth: int) -> Part:
    joined: list[Parts] = []
    for _ in range(draw(st.integers(1, 2))):
        parts = _resized(_parts(draw, x, depth), x, x)
        x = torch.cat([x, modular(parts, x)[1]], dim=1)
        joined.append(parts)
    return "dense", {"parts": joined}


_ANYWHERE = [_batch_norm, _own_norm, _noise, _plain, _activation]
_ON_IMAGES = [_conv2d, _conv2d, _pool, _adaptive_avg_pool, _resize, *_ANYWHERE]
_ON_ROWS = [_linear, *_ANYWHERE]
_COMBINATORS: list[Callable[..., Part]] = [_sequential, _residual, _concat, _dense]


def _parts(draw: st.DrawFn, x: Tensor, depth: int) -> Parts:
    """Up to four layers for inputs like `x`, with combinators in them to a depth."""
    parts: Parts = []
    for _ in range(draw(st.integers(1, 3 if depth else 2))):
        if depth and draw(st.integers(0, 2)) == 0:
            part = draw(st.sampled_from(_COMBINATORS))(draw, x, depth - 1)
        else:
            part = draw(st.sampled_from(_ON_IMAGES if x.ndim == 4 else _ON_ROWS))(draw, x)
        parts.append(part)
        x = modular([part], x)[1]
    return parts


@st.composite
def layers(draw: st.DrawFn, classes: int | None = None) -> Architecture:
    """Draw a random network of all layers and combinators, and the shape of an input.

    With `classes` it ends in a linear layer with so many outputs.
    """
    shape = draw(st.tuples(*[st.integers(3, 5), st.integers(1, 4)], *[st.integers(1, 7)] * 2))
    parts = _parts(draw, torch.zeros(1, *shape[1:]), depth=2)
    if draw(st.booleans()):
        parts.append(("flatten", {}))
        parts += _parts(draw, modular(parts, torch.zeros(1, *shape[1:]))[1], depth=1)
    if classes is None:
        return Architecture(parts, shape)
    if modular(parts, torch.zeros(1, *shape[1:]))[1].ndim == 4:
        parts += [("global_avg_pool", {}), ("flatten", {})]
    return Architecture([*parts, ("linear", {"features": classes, "bias": True})], shape)


def networks(name: str | None = None) -> st.SearchStrategy[Network]:
    """Return networks in all sizes: those called `name`, or all of the eight.

    Raises ValueError for an unknown name.
    """
    if name is None:
        return st.one_of(*_NETWORKS.values())
    if name not in _NETWORKS:
        raise ValueError(f"no network is called {name!r}: expected one of {', '.join(_NETWORKS)}")
    return _NETWORKS[name]


@st.composite
def images(
    draw: st.DrawFn,
    shape: Sequence[int] | st.SearchStrategy[tuple[int, ...]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Draw normally distributed images (N, C, H, W), of a shape or of shapes that are drawn."""
    drawn = draw(
        shape if isinstance(shape, st.SearchStrategy) else st.just(shape or draw(shapes()))
    )
    return random.normal(draw(keys()), tuple(drawn), torch.float64).to(dtype)


def keys() -> st.SearchStrategy[Tensor]:
    """Return keys of `funcnets.random`."""
    return seeds.map(random.key)


def trees(
    leaves: st.SearchStrategy[Any] | None = None, max_leaves: int = 9
) -> st.SearchStrategy[dict[str, Any]]:
    """Return nested dicts with at most `max_leaves` leaves.

    `leaves` is the strategy that draws them; without one they are small float64 tensors.
    """
    if leaves is None:
        leaves = images(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    names = st.text("abc_1", min_size=1, max_size=3)

    def nested(below: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.dictionaries(names, below, min_size=1, max_size=3)

    return nested(st.recursive(leaves, nested, max_leaves=max_leaves))
