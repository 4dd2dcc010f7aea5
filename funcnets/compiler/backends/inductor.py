"""Passes for inductor, which make its results right."""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.edit import emit, fake_value
from funcnets.compiler.graph.operators import define

aten = torch.ops.aten


def spell_out_factors(compilation: Compilation) -> bool:
    """Write x + alpha·y as a product and a sum.

    Where x or y is a matrix product, inductor makes `addmm` of both and drops the factor (seen with
    torch 2.14).
    """
    graph = compilation.graph
    found = [
        node
        for node in graph.find_nodes(op="call_function", target=aten.add.Tensor)
        if "alpha" in node.kwargs
    ]
    for node in found:
        x, y = node.args
        with graph.inserting_before(node):
            product = emit(graph, aten.mul.Scalar, y, node.kwargs["alpha"])
        node.args, node.kwargs = (x, product), {}
    return bool(found)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> list[Tensor]:
    """Return the gradients of a convolution that are asked for, in the strides of the operands."""
    grads = aten.convolution_backward(grad, x, weight, *how)
    pairs = zip(grads, (x, weight, None), strict=True)
    return [_like(given, operand) for given, operand in pairs if given is not None]


def _like(grad: Tensor, operand: Tensor | None) -> Tensor:
    if operand is None:
        return grad
    stride = torch.empty_like(operand, device="meta").stride()
    return grad if grad.stride() == stride else torch.empty_like(operand).copy_(grad)


def _fake_gradients(grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> list[Tensor]:
    operands = (x, weight, weight.new_empty(weight.shape[0]))
    mask = how[-1]
    return [torch.empty_like(each) for each, kept in zip(operands, mask, strict=True) if kept]


CONVOLUTION_BACKWARD = define(
    "convolution_backward(Tensor grad, Tensor x, Tensor weight, int[]? sizes, int[] stride, "
    "int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups, "
    "bool[] mask) -> Tensor[]",
    _gradients,
    _fake_gradients,
    devices=("CPU", "CUDA"),
)


def pin_gradient_strides(compilation: Compilation) -> bool:
    """Give gradients of convolutions over single pixels the strides that the graph says.

    A map of one pixel is in both memory formats, and then cuDNN gives the weight's gradient in
    another one than the fake tensors have (seen with torch 2.11), whose strides inductor goes by.
    """
    found = [
        node
        for node in compilation.graph.find_nodes(
            op="call_function", target=aten.convolution_backward.default
        )
        if is_pinned(fake_value(node.args[0]), fake_value(node.args[1]))
    ]
    for node in found:
        _pin(compilation.graph, node)
    return bool(found)


def is_pinned(grad: Tensor, x: Tensor) -> bool:
    """True for the gradient of a convolution on a GPU, over maps of one pixel."""
    return x.is_cuda and 1 in (x.shape[2:].numel(), grad.shape[2:].numel())


def _pin(graph: fx.Graph, node: fx.Node) -> None:
    mask: Any = node.args[-1]
    with graph.inserting_before(node):
        pinned = emit(graph, CONVOLUTION_BACKWARD, *node.args)
    for user in list(node.users):
        wanted = sum(mask[: user.args[1]])
        with graph.inserting_before(user):
            user.replace_all_uses_with(emit(graph, operator.getitem, pinned, wanted))
        graph.erase_node(user)
    graph.erase_node(node)
