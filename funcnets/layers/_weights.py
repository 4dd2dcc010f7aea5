"""Weight and bias of convolutions and linear layers: initial values and checks."""

from torch import Tensor

from funcnets import initializers, random
from funcnets.core import LayerError, Params
from funcnets.initializers import Initializer


def draw_weights(
    key: Tensor,
    shape: tuple[int, ...],
    x: Tensor,
    initializer: Initializer | None,
    bias: bool,
    bias_initializer: Initializer | None,
) -> Params:
    """Return `weight` of the given shape and `bias`, on the key's device, in x's dtype.

    The defaults are Xavier uniform for the weight, and uniform in ±1/√fan_in for the bias.
    """
    weight_key, bias_key = random.split(key)
    params = {"weight": (initializer or initializers.xavier_uniform())(weight_key, shape, x.dtype)}
    if bias:
        bound = initializers.fans(shape)[0] ** -0.5
        bias_initializer = bias_initializer or initializers.uniform(bound)
        params["bias"] = bias_initializer(bias_key, shape[:1], x.dtype)
    return params


def weight_names(bias: bool) -> tuple[str, ...]:
    """Return the names of the parameters that `draw_weights` gives."""
    return ("weight", "bias") if bias else ("weight",)


def check_weight(
    kind: str, x: Tensor, weight: Tensor, expected: tuple[int, ...], channels: int, unit: str
) -> None:
    """Raise LayerError unless `weight` has the expected shape and fits `x`, (N, channels, ...).

    `unit` is the name of the channels in the message.
    """
    if weight.shape != expected:
        raise LayerError(
            f"{kind}: its weight has shape {tuple(weight.shape)}, expected {expected}: "
            "these parameters are another network's"
        )
    if x.shape[1] != channels:
        is_last = x.ndim == 4 and x.shape[3] == channels
        mend = ": of images (N, H, W, C) pass x.permute(0, 3, 1, 2)" if is_last else ""
        raise LayerError(
            f"{kind}: got {x.shape[1]} {unit}, expected {channels} "
            f"(its weight has shape {tuple(weight.shape)}){mend}"
        )


def check_image_size(
    kind: str, x: Tensor, kernel: tuple[int, ...], padding: tuple[int, ...]
) -> None:
    """Raise LayerError where a padded image of `x`, (N, C, H, W), is smaller than the kernel."""
    smallest = tuple(max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True))
    if any(side < least for side, least in zip(x.shape[2:], smallest, strict=True)):
        raise LayerError(
            f"{kind}: its input is {x.shape[2]}×{x.shape[3]}, and must be at least "
            f"{smallest[0]}×{smallest[1]}: the image is too small for the network"
        )
