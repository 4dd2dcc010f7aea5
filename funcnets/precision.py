"""Precision: in which floating types a network keeps its parameters, computes and answers."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcnets import tree
from funcnets.core import Apply, Layer, Params, State, wrap


class Policy(NamedTuple):
    """The floating types of a network; statistics stay as they are, float32 at least."""

    params: torch.dtype  # of the parameters that the optimizer updates, and of their gradients
    compute: torch.dtype  # to which parameters and inputs are cast where they are used
    output: torch.dtype  # to which the logits are cast, before the loss
    tf32: bool = False  # whether GPUs may round factors so; `jit` is told, as no graph can tell


POLICIES = {
    "float32": Policy(torch.float32, torch.float32, torch.float32),
    "tf32": Policy(torch.float32, torch.float32, torch.float32, tf32=True),
    "bfloat16": Policy(torch.float32, torch.bfloat16, torch.float32),
}
PRECISIONS = (*POLICIES, "auto")


def available(device: str) -> tuple[str, ...]:
    """The names of the policies that a device can tell apart: TF32 is a matter of GPUs."""
    is_gpu = device.startswith("cuda")
    return tuple(name for name, policy in POLICIES.items() if is_gpu or not policy.tf32)


def cast(net: Layer, policy: Policy) -> Layer:
    """The same network in the floating types of `policy`, with the same names of leaves.

    Its `init` gives parameters of `policy.params`; its `apply` computes in `policy.compute` and
    gives `policy.output`.  Derivatives have the type of what they are taken by, so gradients that
    come out of a bfloat16 network are added up in float32 masters.
    Micikevicius et al., Mixed precision training, 2018, section 3.1.
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
            params = tree.map(lambda leaf: leaf.to(policy.compute), params)
            y, state = inner(params, state, x.to(policy.compute), train=train, key=key)
            return y.to(policy.output), state

        return apply

    return replace(wrap(net, around), init=init)
