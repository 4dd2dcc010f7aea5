"""Derivatives and `vmap` of functions of trees: `torch.func` with the names and results of JAX.

They differ from `torch.func` in the order of results: `value_and_grad` gives the value first.
"""

from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]
Argnums = int | tuple[int, ...]


def grad(function: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """Return the gradient function of a scalar function, as `jax.grad`.

    Args:
        function: returns a 0-d tensor, with `has_aux` (0-d tensor, aux).
        argnums: position of the argument, a tree of floating tensors, or positions in a tuple.
        has_aux: True if `function` returns more than the value.

    The result gives a tree like the argument, a tuple of trees for a tuple of positions; with
    `has_aux` (gradients, aux).

    >>> import torch, funcnets
    >>> funcnets.grad(lambda params: (params["w"] ** 2).sum())({"w": torch.tensor([1.0, 2.0])})
    {'w': tensor([2., 4.])}
    """
    return torch.func.grad(function, argnums, has_aux)


def value_and_grad(function: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """Return the function that gives (value, gradients), as `jax.value_and_grad`.

    Arguments are those of `grad`.  With `has_aux` the result gives ((value, aux), gradients).
    `torch.func.grad_and_value` gives the two the other way round.

    >>> import torch, funcnets
    >>> funcnets.value_and_grad(lambda x: x**2)(torch.tensor(3.0))
    (tensor(9.), tensor(6.))
    """
    both = torch.func.grad_and_value(function, argnums, has_aux)

    def value_first(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        gradients, value = both(*args, **kwargs)
        return value, gradients

    return value_first


def vmap(
    function: Function,
    in_axes: Any = 0,
    out_axes: Any = 0,
    *,
    chunk_size: int | None = None,
) -> Function:
    """Return the function mapped over an axis of its arguments, as `jax.vmap`.

    Random numbers are those of keys: a function that draws from PyTorch's generator is refused.

    Args:
        function: takes and returns trees of tensors.
        in_axes: axis of all tensors of an argument; a tuple has one for each argument, or a tree of
            them, and None for an argument that isn't mapped.
        out_axes: axis in the results.
        chunk_size: number of elements computed at once, which bounds the memory; None for all.

    >>> import torch, funcnets
    >>> funcnets.vmap(torch.dot, in_axes=(0, None))(torch.eye(2), torch.tensor([3.0, 4.0]))
    tensor([3., 4.])
    """
    mapped: Function = torch.func.vmap(function, in_axes, out_axes, chunk_size=chunk_size)
    return mapped


def jvp(
    function: Function, primals: tuple[Any, ...], tangents: tuple[Any, ...], has_aux: bool = False
) -> Any:
    """Return (outputs, tangents of outputs) by forward mode, as `jax.jvp`.

    Args:
        function: takes and returns trees of tensors; with `has_aux` it returns (outputs, aux).
        primals: its arguments.
        tangents: directions, trees like the arguments.
        has_aux: True if `function` returns more than the outputs; the result then is (outputs,
            tangents of outputs, aux).

    >>> import torch, funcnets
    >>> funcnets.jvp(lambda x: x**2, (torch.tensor(3.0),), (torch.tensor(1.0),))
    (tensor(9.), tensor(6.))
    """
    return torch.func.jvp(function, primals, tangents, has_aux=has_aux)


def vjp(function: Function, *primals: Any, has_aux: bool = False) -> Any:
    """Return (outputs, pull_back) by reverse mode, as `jax.vjp`.

    `pull_back(cotangents)` takes a tree like the outputs, and returns a tuple with a tree for each
    argument.

    Args:
        function: takes and returns trees of tensors; with `has_aux` it returns (outputs, aux).
        primals: its arguments.
        has_aux: True if `function` returns more than the outputs; the result then is (outputs,
            pull_back, aux).

    >>> import torch, funcnets
    >>> y, pull_back = funcnets.vjp(lambda x: x**2, torch.tensor(3.0))
    >>> pull_back(torch.tensor(1.0))
    (tensor(6.),)
    """
    return torch.func.vjp(function, *primals, has_aux=has_aux)


def hessian(function: Function, argnums: Argnums = 0) -> Function:
    """Return the function that gives second derivatives, forward over reverse, as `jax.hessian`.

    `argnums` is the position of the argument, a tree of floating tensors, or a tuple of positions.
    For an argument that is a tree, the result is a tree of trees: `result[name][other]` has the
    axes of leaf `name`, then those of `other`.  For products with a vector see
    `transforms.curvature.hessian_product`, which doesn't compute the whole.

    >>> import torch, funcnets
    >>> funcnets.hessian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    return torch.func.hessian(function, argnums)
