"""Networks as plain data, built twice: of funcnets' layers, and of plain modules.

A network is a list of (kind, options).  The options of a combinator hold lists of the same form:
`("residual", {"main": [("conv2d", {"channels": 3, "kernel": 1})], "shortcut": None})`, and
`parts`, of `concat` and `dense`, holds one such list for each branch.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from funcnets import layers
from funcnets.core import Layer, concat, dense, residual, sequential
from funcnets.testing import twins

Part = tuple[str, dict[str, Any]]
Parts = list[Part]


class Architecture(NamedTuple):
    """A random network as plain data, which can be printed and built again.

    Attributes:
        parts: (kind, options) of each layer, one after another.
        shape: shape of an input.
    """

    parts: Parts
    shape: tuple[int, ...]

    def layer(self) -> Layer:
        """Return the network of funcnets' layers."""
        return functional(self.parts)

    def module(self) -> nn.Module:
        """Return the network of plain modules, with the same names."""
        return modular(self.parts, torch.zeros(1, *self.shape[1:]))[0]


def functional(parts: Parts) -> Layer:
    """Return the network as a Layer; part i is called `part<i>`."""
    return sequential(**{f"part{i}": _layer(*part) for i, part in enumerate(parts)})


def _layer(kind: str, options: dict[str, Any]) -> Layer:
    if kind == "residual":
        shortcut = options["shortcut"]
        return residual(
            sequential(main=functional(options["main"])), shortcut and functional(shortcut)
        )
    if kind in ("concat", "dense"):
        join = {"concat": concat, "dense": dense}[kind]
        return join(**{f"part{i}": functional(part) for i, part in enumerate(options["parts"])})
    if kind == "sequential":
        return functional(options["main"])
    layer: Layer = getattr(layers, kind)(**options)
    return layer


class Residual(nn.Module):
    """Sum of two modules of one input."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for `x`."""
        total: Tensor = self.main(x) + self.shortcut(x)
        return total


class Concat(nn.Sequential):
    """Outputs of modules of one input, joined on channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for `x`."""
        return torch.cat([part(x) for part in self], dim=1)


class Dense(nn.Sequential):
    """Input of each module joined to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for `x`."""
        for part in self:
            x = torch.cat([x, part(x)], dim=1)
        return x


def modular(parts: Parts, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Return the network as a module for inputs like `x`, and its output for `x` in evaluation."""
    module = nn.Sequential()
    for i, part in enumerate(parts):
        module.add_module(f"part{i}", _module(*part, x).eval())
        with torch.no_grad():
            x = module[i](x)
    return module, x


def _module(kind: str, options: dict[str, Any], x: Tensor) -> nn.Module:
    if kind == "residual":
        main, shortcut = options["main"], options["shortcut"]
        return Residual(modular(main, x)[0], modular(shortcut, x)[0] if shortcut else nn.Identity())
    if kind == "sequential":
        return modular(options["main"], x)[0]
    if kind in ("concat", "dense"):
        joined = Concat() if kind == "concat" else Dense()
        for i, part in enumerate(options["parts"]):
            module, y = modular(part, x)
            joined.add_module(f"part{i}", module)
            x = torch.cat([x, y], dim=1) if kind == "dense" else x
        return joined
    return _LEAVES[kind](x, **options)


def _batch_norm(x: Tensor, momentum: float, eps: float, unbiased: bool) -> nn.Module:
    if not unbiased:
        return twins.ScratchBatchNorm(x.shape[1], 1 - momentum, eps)
    kind = nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d
    return kind(x.shape[1], eps, momentum)


def _torchvision() -> Any:
    """Return `torchvision.ops`, which takes a second to import."""
    return importlib.import_module("torchvision.ops")


_LEAVES: dict[str, Callable[..., nn.Module]] = {
    "conv2d": lambda x, channels, kernel, **options: nn.Conv2d(
        x.shape[1], channels, kernel, **options
    ),
    "linear": lambda x, features, bias: nn.Linear(x.shape[1], features, bias),
    "batch_norm": _batch_norm,
    "dropout": lambda x, rate: twins.MaskedDropout(rate),
    "max_pool": lambda x, kernel, **options: nn.MaxPool2d(kernel, **options),
    "avg_pool": lambda x, kernel, **options: nn.AvgPool2d(kernel, **options),
    "adaptive_avg_pool": lambda x, size: nn.AdaptiveAvgPool2d(size),
    "global_avg_pool": lambda x: nn.AdaptiveAvgPool2d(1),
    "flatten": lambda x: nn.Flatten(),
    "relu": lambda x: nn.ReLU(),
    "sigmoid": lambda x: nn.Sigmoid(),
    "tanh": lambda x: nn.Tanh(),
    "gelu": lambda x, tanh: nn.GELU("tanh" if tanh else "none"),
    "silu": lambda x: nn.SiLU(),
    "leaky_relu": lambda x, slope: nn.LeakyReLU(slope),
    "elu": lambda x, alpha: nn.ELU(alpha),
    "softmax": lambda x: nn.Softmax(1),
    "layer_norm": lambda x, eps: nn.LayerNorm(x.shape[1:], eps),
    "group_norm": lambda x, groups, eps: nn.GroupNorm(groups, x.shape[1], eps),
    "instance_norm": lambda x, eps, affine: nn.InstanceNorm2d(x.shape[1], eps, affine=affine),
    "conv_transpose2d": lambda x, channels, kernel, **options: nn.ConvTranspose2d(
        x.shape[1], channels, kernel, **options
    ),
    "upsample": lambda x, scale, mode: nn.Upsample(scale_factor=float(scale), mode=mode),
    "squeeze_excite": lambda x, channels, squeeze: _torchvision().SqueezeExcitation(
        channels, squeeze
    ),
    "stochastic_depth": lambda x, rate, mode: _torchvision().StochasticDepth(rate, mode),
}
KINDS = {*_LEAVES, "sequential", "residual", "concat", "dense"}
