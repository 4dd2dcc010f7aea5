"""Fusion: fewer passes over a map, by operations that ATen has.

The derivative of batch normalisation, as `grad` leaves it, makes eleven passes over a map: with
the layer's input x, the gradient g of its output, and a number a channel for the rest, it is
g·a + (k·(x - m) + c/n), beside the sums of g·x and g.  The rules make three passes of that.
They hold wherever they match, so what a network does otherwise is left as it stands.
"""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import changed, viewed, written
from funcnets.compiler.graph.edit import Replacements, _args, _is, _is_once, _value, emit, replace
from funcnets.compiler.kernels.max_pool import GATHER, MAXIMA, is_usual
from funcnets.compiler.kernels.moments import CHANNEL_MOMENTS, CHANNEL_SUMS, SCALED, library
from funcnets.compiler.kernels.winograd import CONVOLVE
from funcnets.compiler.lowerings.table import unwatched

aten = torch.ops.aten
Watch = Callable[[str, Replacements], None]  # is told of each rewrite while both are in the graph


def fuse(
    graph: fx.GraphModule, are_loops_to_come: bool = True, watch: Watch = unwatched
) -> dict[str, int]:
    """Apply the rules to `graph`, which must have come from `trace`, and tell how often each.

    `are_loops_to_come`: leave to them what they do better.
    """
    fired: Counter[str] = Counter()
    is_written = any(any(written(node)) for node in graph.graph.nodes)
    for rules in (RULES, LAST_RULES) if are_loops_to_come else (LOOPLESS_RULES,):
        for node in list(graph.graph.nodes):
            for rule in rules.get(node.target, ()):
                overwritten = changed(graph.graph) if is_written else set()
                if replacements := _replacements(rule, node, overwritten):
                    name = f"fusion.{rule.__name__}"
                    watch(name, replacements)
                    replace(replacements)
                    fired[name] += 1
                    break
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return dict(fired)


def _replacements(rule: "Rule", node: fx.Node, overwritten: set[fx.Node]) -> Replacements:
    """What `rule` does at `node`; nothing where a value is overwritten that takes part in it.

    Such a value may not be read elsewhere than where it was read.
    """
    known = set(node.graph.nodes) if overwritten else set()
    with node.graph.inserting_before(node):
        replacements = rule(node)
    if overwritten and not overwritten.isdisjoint(_taking_part(replacements, known)):
        return {}
    return replacements if all(map(_is_alike, replacements, replacements.values())) else {}


def _taking_part(replacements: Replacements, known: set[fx.Node]) -> set[fx.Node]:
    """What is replaced, and what of the `known` nodes the new ones are, or are made of."""
    found, begun = set(replacements), list(replacements.values())
    while begun:
        node = begun.pop()
        if node in known:
            found.add(node)
        else:
            begun += node.all_input_nodes
    return found


def times_one(node: fx.Node) -> Replacements:
    """x·1 is x, unless the caller is given it, or a view of it, as new memory."""
    x, factor = _args(node)
    given = any(user.op == "output" or viewed(user) is node for user in node.users)
    return {node: x} if factor == 1 and not given else {}


def channel_sums(node: fx.Node) -> Replacements:
    """The sums over all but the channels of g·x and of g, by one pass over both."""
    g, x = _args(node)
    if not _are_maps(g, x):
        return {}
    product_sum, g_sum = (_channel_sum(value, node) for value in (node, g))
    if len(node.users) > 1 or product_sum is None or g_sum is None:
        return {}
    graph, sums = node.graph, emit(node.graph, CHANNEL_SUMS, g, x)
    return {
        old: emit(
            graph, aten.view.default, emit(graph, operator.getitem, sums, i), _value(old).shape
        )
        for i, old in enumerate((product_sum, g_sum))
    }


def deviation(node: fx.Node) -> Replacements:
    """k·(x - m) + c/n is (c/n - k·m) + k·x, in one pass; the derivative of mean and variance."""
    product, quotient = _args(node)
    if not (_is_once(product, aten.mul.Tensor) and _is_once(quotient, aten.div.Scalar)):
        return {}
    (factor, difference), (expanded, count) = _args(product), _args(quotient)
    if not (_is_once(difference, aten.sub.Tensor) and _is(expanded, aten.expand.default)):
        return {}
    (x, mean), constant = _args(difference), _args(expanded)[0]
    if _is(mean, aten.mean.dim):
        mean = _known_mean(mean) or mean
    graph = node.graph
    shift = emit(graph, aten.div.Scalar, constant, count)
    shift = emit(graph, aten.sub.Tensor, shift, emit(graph, aten.mul.Tensor, factor, mean))
    return {node: emit(graph, aten.addcmul.default, shift, x, factor)}


def multiply_add(node: fx.Node) -> Replacements:
    """y + u·v in one pass, where nothing else reads the product; v may be a number."""
    operands = () if node.kwargs else _args(node)
    for product, y in permutations(operands, 2):
        if not _is_once(product, aten.mul.Tensor) or not isinstance(y, fx.Node):
            continue
        u, v = _args(product)
        alike = {_value(n).dtype for n in (y, u, v, node) if isinstance(n, fx.Node)}
        whole = _value(product).shape == _value(node).shape
        if len(alike) == 1 and whole and _value(node).is_floating_point():
            if isinstance(v, fx.Node):
                return {node: emit(node.graph, aten.addcmul.default, y, u, v)}
            return {node: emit(node.graph, aten.add.Tensor, y, u, alpha=v)}
    return {}


def max_pool(node: fx.Node) -> Replacements:
    """A max pool, with its gradients, that keeps the place of each maximum as a byte."""
    x, kernel, *how = _args(node)
    usual: tuple[Any, ...] = ([], [0, 0])
    stride, padding, *rest = (*how, *usual[len(how) :])  # which may be left out
    stride = stride or kernel
    parts = {part.args[1]: part for part in node.users}
    gradients = list(parts[1].users) if 1 in parts else []
    operation = aten.max_pool2d_with_indices_backward.default
    is_all = all(_is(each, operation) and each.args[-1] is parts[1] for each in gradients)
    if 0 not in parts or not is_all:
        return {}
    if not is_usual(_value(x), kernel, stride, padding, *rest):
        return {}
    graph, (image, small) = node.graph, (_value(each).shape[2:] for each in (x, parts[0]))
    results = emit(graph, MAXIMA, x, kernel, stride, padding, list(small))
    maxima, where = (emit(graph, operator.getitem, results, i) for i in (0, 1))
    replaced = {parts[0]: maxima}
    for each in gradients:
        with graph.inserting_before(each):
            grad = _args(each)[0]
            replaced[each] = emit(graph, GATHER, grad, where, kernel, stride, padding, list(image))
    return replaced


def rectified(node: fx.Node) -> Replacements:
    """The ReLU of a convolution by tiles, as these are written."""
    (convolution,) = _args(node)
    if not _is_once(convolution, CONVOLVE):
        return {}
    x, weight, bias, padding, turned, *_ = _args(convolution)  # which may be a ReLU already
    return {node: emit(node.graph, CONVOLVE, x, weight, bias, padding, turned, True)}


def as_stored(node: fx.Node) -> Replacements:
    """Statistics of maps that were converted from bfloat16, of the maps as they are in memory."""
    narrow = [_narrow(operand) for operand in _args(node)]
    if None in narrow or library(torch.bfloat16) is None:
        return {}
    operation: Any = node.target
    results = emit(node.graph, operation, *narrow)
    return {part: emit(node.graph, operator.getitem, results, part.args[1]) for part in node.users}


def scaled(node: fx.Node) -> Replacements:
    """Scale and shift by channel, or scale alone, of a map in bfloat16, as it is in memory.

    Operations of their own in float32 would make a pass each, and each conversion another.
    """
    result = node.args[0]
    if _value(node).dtype is not torch.bfloat16 or not isinstance(result, fx.Node):
        return {}
    if _is_once(result, aten.addcmul.default) and not result.kwargs:
        shift, factors = _args(result)[0], _args(result)[1:]
    elif _is_once(result, aten.mul.Tensor):
        shift, factors = None, _args(result)
    else:
        return {}
    for x, scale in permutations(factors):
        narrow = isinstance(x, fx.Node) and _narrow(x)
        if not narrow or not _are_maps(narrow) or not _is_of_channels(scale, x):
            continue
        if shift is None or _is_of_channels(shift, x):
            line = emit(node.graph, aten.view.default, scale, (-1,))
            plus = shift and emit(node.graph, aten.view.default, shift, (-1,))
            return {node: emit(node.graph, SCALED, narrow, line, plus)}
    return {}


def _is_of_channels(value: Any, like: fx.Node) -> bool:
    """Whether it is a number for each channel of a map, in the map's type and in a row."""
    if not isinstance(value, fx.Node) or library(torch.bfloat16) is None:
        return False
    x, numbers = _value(like), _value(value)
    shape = [1] * (x.ndim - numbers.ndim) + list(numbers.shape)
    is_row = numbers.is_contiguous() and numbers.dtype is x.dtype
    return is_row and shape == [n if d == 1 else 1 for d, n in enumerate(x.shape)]


def _narrow(value: fx.Node) -> fx.Node | None:
    """What `value` is in bfloat16, if it is a conversion of that and nothing else."""
    if not _is(value, aten._to_copy.default):
        return None
    before, after = _value(value.all_input_nodes[0]), _value(value)
    types = before.dtype, after.dtype
    usual = types == (torch.bfloat16, torch.float32) and before.stride() == after.stride()
    return value.all_input_nodes[0] if usual else None


Rule = Callable[[fx.Node], Replacements]
RULES: dict[Any, tuple[Rule, ...]] = {
    aten.max_pool2d_with_indices.default: (max_pool,),
    aten.relu.default: (rectified,),
    aten.mul.Scalar: (times_one,),
    aten.mul.Tensor: (channel_sums,),
    aten.add.Tensor: (deviation, multiply_add),
}
# Those that would hide from the others what belongs together.
LAST_RULES: dict[Any, tuple[Rule, ...]] = {
    CHANNEL_MOMENTS: (as_stored,),
    CHANNEL_SUMS: (as_stored,),
}

LOOPLESS_RULES: dict[Any, tuple[Rule, ...]] = {aten._to_copy.default: (scaled,)}


def _is_alike(old: fx.Node, new: fx.Node) -> bool:
    """Whether one can stand for the other, also where its strides matter, as to a view of it."""
    before, after = ((x.shape, x.dtype, x.stride()) for x in map(_value, (old, new)))
    return before == after


def _are_maps(*nodes: Any) -> bool:
    """Whether they are floats on the CPU, with channels, of one shape and memory format."""
    if not all(isinstance(node, fx.Node) for node in nodes):
        return False
    values = [_value(node) for node in nodes]
    if len({(x.shape, x.dtype) for x in values}) > 1 or values[0].ndim not in (2, 4):
        return False
    usual = values[0].is_floating_point() and values[0].device.type == "cpu"
    formats = [torch.contiguous_format, torch.channels_last][: values[0].ndim // 2]
    return usual and any(
        all(x.is_contiguous(memory_format=memory_format) for x in values)
        for memory_format in formats
    )


def _is_all_but_channels(dims: Sequence[int], x: Tensor) -> bool:
    """Whether they are the batch and the sides of `x`; those of length 1 may be left out."""
    return 1 not in dims and all(n == 1 or d in dims for d, n in enumerate(x.shape) if d != 1)


def _channel_sum(value: fx.Node, after: fx.Node) -> fx.Node | None:
    """The sum over all but the channels, if the graph has it, and no earlier than `after`."""
    for user in value.users:
        is_sum = user.target is aten.sum.dim_IntList and not user.kwargs and user >= after
        if is_sum and _is_all_but_channels(_args(user)[1], _value(value)):
            return user
    return None


def _known_mean(mean: fx.Node) -> fx.Node | None:
    """The mean over all but the channels from the operation that gave the variance too."""
    x, dims, *_ = _args(mean)
    for statistics in x.users:
        if statistics.target in (CHANNEL_MOMENTS, aten.batch_norm_update_stats.default):
            for value in statistics.users:
                if value.args[1] == 0 and _is_all_but_channels(dims, _value(x)):
                    return emit(mean.graph, aten.view.default, value, _value(mean).shape)
    return None
