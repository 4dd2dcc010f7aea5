"""Dtypes of a network's parameters, computation and output (mixed precision); memory format."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets.core import Apply, Layer, LayerError, Params, State, wrap


class Policy(NamedTuple):
    """The dtypes of a network; batch-norm statistics stay as they are, in float32 or wider.

    Attributes:
        params: of the parameters that the optimizer updates, and of their gradients.
        compute: to which parameters and inputs are cast where they are used.
        output: to which the logits are cast, before the loss.
        tf32: True if GPUs may round the factors of float32 products to TF32.  No dtype says so:
            pass it on, as `funcnets.jit(step, tf32=policy.tf32)`.
    """

    params: torch.dtype
    compute: torch.dtype
    output: torch.dtype
    tf32: bool = False


POLICIES = {
    "float32": Policy(torch.float32, torch.float32, torch.float32),
    "tf32": Policy(torch.float32, torch.float32, torch.float32, tf32=True),
    "bfloat16": Policy(torch.float32, torch.bfloat16, torch.float32),
}
PRECISIONS = (*POLICIES, "auto")  # a choice of precision: `auto` is the fastest one


def available(device: str) -> tuple[str, ...]:
    """Return the names of the policies that differ on a device: `tf32` is for GPUs alone.

    >>> available("cpu")
    ('float32', 'bfloat16')
    """
    is_gpu = device.startswith("cuda")
    return tuple(name for name, policy in POLICIES.items() if is_gpu or not policy.tf32)


def usual(device: str) -> str:
    """Return the precision of a training that asks for none.

    On a GPU with tensor cores for it (capability 8.0 and up) that is bfloat16, else float32.

    >>> usual("cpu")
    'float32'
    """
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"


def check_images(x: Tensor) -> None:
    """Raise LayerError for inputs of integers, such as images in bytes, 0 to 255."""
    if not x.is_floating_point():
        raise LayerError(
            f"the input is {x.dtype}; expected a floating type: convert images of bytes inside "
            "the step, as in train.make_train_step(..., prepare=partial(data.prepare, side=28))"
        )


def in_channels_last(values: Any) -> Any:
    """Return a tree of tensors with those of rank 4 in the memory format channels_last (NHWC).

    It is what the tensor cores of GPUs read: convolutions whose weights are in it compute in it.

    >>> import torch
    >>> from funcnets import precision
    >>> params = precision.in_channels_last({"weight": torch.zeros(2, 3, 5, 5)})
    >>> params["weight"].stride()
    (75, 1, 15, 3)
    >>> precision.in_channels_last(torch.zeros(2, 1, 5, 5)).stride()
    (25, 1, 5, 1)
    """

    def converted(leaf: Tensor) -> Tensor:
        # Not `contiguous`, which leaves the strides of a single channel, by which PyTorch decides
        # in which format a convolution computes.
        return leaf.to(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf

    return tree.map(converted, values)


def cast(net: Layer, policy: Policy) -> Layer:
    """Return the same network in the dtypes of `policy`, with the same names of parameters.

    Its `init` gives parameters in `policy.params`; its `apply` computes in `policy.compute` and
    gives an output in `policy.output`.  A gradient has the dtype of what it is taken with respect
    to, so a network in bfloat16 accumulates its gradients in the float32 of the parameters.

    Micikevicius et al., "Mixed precision training", 2018, section 3.1.

    >>> import torch
    >>> from funcnets import layers, precision, random
    >>> net = precision.cast(layers.linear(2), precision.POLICIES["bfloat16"])
    >>> params, state = net.init(random.key(0), torch.ones(1, 3))
    >>> logits, _ = net.apply(params, state, torch.ones(1, 3))
    >>> params["weight"].dtype, logits.dtype  # computed in bfloat16
    (torch.float32, torch.float32)
    """

    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        return net.init(key, x.to(policy.params))

    def around(inner: Apply) -> Apply:
        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            check_images(x)
            params = tree.map(lambda leaf: leaf.to(policy.compute), params)
            y, state = inner(params, state, x.to(policy.compute), train=train, key=key)
            return y.to(policy.output), state

        return apply

    return replace(wrap(net, around), init=init)
