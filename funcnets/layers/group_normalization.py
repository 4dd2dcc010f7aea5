"""Normalisation of each example by its own statistics: group, layer and instance normalisation."""

import torch
from torch import Tensor

from funcnets import initializers
from funcnets._validate import check_non_negative
from funcnets.core import Layer, LayerError, Params, State
from funcnets.layers._arguments import check_counts, format_kind
from funcnets.layers._leaf import Shapes, leaf


def group_norm(groups: int, eps: float = 1e-5, *, affine: bool = True) -> Layer:
    """Return normalisation of each group of channels of an example, (N, C) or (N, C, H, W).

    It computes what `torch.nn.GroupNorm` does.  Parameters: `weight` of ones and `bias` of zeros,
    (C,).

    Args:
        groups: number of groups into which the channels are divided.
        eps: added to the biased variance; 0 or more.
        affine: True for `weight` and `bias`.

    Raises ValueError for groups below 1 or a negative eps; LayerError for channels that can't be
    divided into groups.
    Wu and He, Group Normalization, 2018.

    >>> import torch
    >>> from funcnets import layers
    >>> layers.group_norm(2, eps=0, affine=False).apply({}, {}, torch.tensor([[1.0, 3, 5, 5.5]]))[0]
    tensor([[-1.,  1., -1.,  1.]])
    """
    kind = format_kind("group_norm", groups, eps=(eps, 1e-5), affine=(affine, True))
    check_counts(kind, groups=groups)
    shapes = dict.fromkeys(("weight", "bias"), _channels) if affine else {}
    return _norm(kind, groups, eps, shapes)


def layer_norm(eps: float = 1e-5, *, affine: bool = True) -> Layer:
    """Return normalisation of each example over channels and pixels, (N, C) or (N, C, H, W).

    It computes what `torch.nn.LayerNorm(x.shape[1:])` does.  Parameters: `weight` of ones and
    `bias` of zeros, of the shape of an example, so they fit images of one size.

    Args:
        eps: added to the biased variance; 0 or more.
        affine: True for `weight` and `bias`.

    Raises ValueError for a negative eps.
    Ba et al., Layer Normalization, 2016.
    """
    kind = format_kind("layer_norm", eps=(eps, 1e-5), affine=(affine, True))
    shapes = dict.fromkeys(("weight", "bias"), _example) if affine else {}
    return _norm(kind, 1, eps, shapes)


def instance_norm(eps: float = 1e-5, *, affine: bool = False) -> Layer:
    """Return normalisation of each channel of each image, (N, C, H, W).

    It computes what `torch.nn.InstanceNorm2d` does, without running statistics.  Parameters, with
    `affine`: `weight` of ones and `bias` of zeros, (C,).

    Args:
        eps: added to the biased variance; 0 or more.
        affine: True for `weight` and `bias`.

    Raises ValueError for a negative eps; LayerError, in training, for images of one pixel.
    Ulyanov et al., Instance Normalization, 2016.
    """
    kind = format_kind("instance_norm", eps=(eps, 1e-5), affine=(affine, False))
    shapes = dict.fromkeys(("weight", "bias"), _channels) if affine else {}
    return _norm(kind, None, eps, shapes)


def _channels(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:2])


def _example(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])


def _norm(kind: str, groups: int | None, eps: float, shapes: Shapes) -> Layer:
    """Return the layer that normalises `groups` of channels; None for a group of each channel."""
    check_non_negative(**{f"{kind}: eps": eps})

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        _check_groups(kind, groups, x)
        values = {"weight": initializers.ones(), "bias": initializers.zeros()}
        return {name: values[name](key, tuple(shapes[name](x)), x.dtype) for name in shapes}, {}

    def apply(
        params: Params, state: State, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, State]:
        _check_groups(kind, groups, x)
        if groups is None and train and x.shape[2:].numel() == 1:
            raise LayerError(
                f"{kind}: got images of one pixel in training: their variance is 0; use larger "
                "images, or another norm"
            )
        normal = _normalized(x, x.shape[1] if groups is None else groups, eps)
        if shapes:
            weight, bias = params["weight"], params["bias"]
            channel = (..., *[None] * (x.ndim - 1 - weight.ndim))
            normal = normal * weight[channel] + bias[channel]  # keeps the memory format of x
        return normal.to(x.dtype), {}

    ranks = (4,) if groups is None else (2, 4)
    return leaf(kind, init, apply, ranks=ranks, params=shapes)


def _normalized(x: Tensor, groups: int, eps: float) -> Tensor:
    """Return (x - mean) / √(variance + eps) of each group of channels, in float32 or wider."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    grouped = precise.unflatten(1, (groups, x.shape[1] // groups))
    over = [*range(2, grouped.ndim)]
    # Not `var_mean`, which warns of an empty batch.
    centred = grouped - grouped.mean(over, keepdim=True)
    variance = centred.square().mean(over, keepdim=True)
    return torch.flatten(centred * torch.rsqrt(variance + eps), 1, 2)


def _check_groups(kind: str, groups: int | None, x: Tensor) -> None:
    if groups is not None and x.shape[1] % groups:
        raise LayerError(
            f"{kind}: {x.shape[1]} channels can't be divided into {groups} groups: channels must "
            "be a multiple of groups"
        )
