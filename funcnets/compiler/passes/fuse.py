"""Fusion: fewer reads and writes of a feature map, by operations that do several at once.

The derivative of batch normalization, as `grad` leaves it, reads or writes a feature map eleven
times: with the layer's input x, the gradient g of its output, and one number for each channel for
the rest, it is g·a + (k·(x - m) + c/n), beside the sums of g·x and g.  The rules make three of
these eleven.  A rule is an identity that holds wherever it matches, in any network.
"""

import operator
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, fx

from funcnets.compiler.graph.aliasing import memory, viewed
from funcnets.compiler.graph.compilation import Compilation
from funcnets.compiler.graph.edit import (
    Replacements,
    arguments,
    calls,
    calls_for_one,
    emit,
    fake_value,
    replace,
)
from funcnets.compiler.kernels import build, moments
from funcnets.compiler.kernels import max_pool as max_pool_kernel
from funcnets.compiler.kernels.moments import CHANNEL_MOMENTS, CHANNEL_SUMS, SCALE_AND_SHIFT
from funcnets.compiler.kernels.winograd import CONVOLUTION

aten = torch.ops.aten
# Operations that give the mean of each channel, and its position among what they give.
MEAN_OF_STATISTICS = {
    CHANNEL_MOMENTS: 0,
    aten.batch_norm_update_stats.default: 0,
    aten.var_mean.correction: 1,
}
NO_DEVIATION = "it is not the sum k·(x - m) + c/n of the derivative of a variance"
NO_CENTERED_SUMS = "it is not the sum Σ g·x - c·Σ g of the derivative of batch norm's weight"
# Functions whose value or slope jumps at 0, apart from those of a ReLU.
NOT_CONTINUOUS_AT_ZERO = {
    *("sqrt", "rsqrt", "reciprocal", "log", "log2", "log10", "sign", "sgn", "floor", "ceil"),
    *("eq", "ne", "lt", "gt", "le", "ge", "signbit", "logical_not", "isnan"),
}
# First arguments, which may be bfloat16; others are in float32.
NUMBER_OF_MAPS = {CHANNEL_MOMENTS: 1, CHANNEL_SUMS: 2}
# Function that returns what a node is replaced by, or in words why it isn't.
Rule = Callable[[fx.Node], Replacements | str]


def fuse_operations(compilation: Compilation) -> bool:
    """Apply the rules for batch norm, max pooling, ReLU and multiply-add."""
    return _apply(compilation, OPERATION_RULES)


def fuse_stored_statistics(compilation: Compilation) -> bool:
    """Compute statistics of bfloat16 feature maps without a copy in float32.

    Comes after `fuse_operations`, whose rules look for the statistics of the copy.
    """
    return _apply(compilation, STATISTICS_RULES)


def fuse_scales(compilation: Compilation) -> bool:
    """Scale and shift bfloat16 feature maps without a copy in float32, where no loops do it."""
    return _apply(compilation, SCALE_RULES)


def _apply(compilation: Compilation, rules: dict[Any, tuple[Rule, ...]]) -> bool:
    """Apply the first rule that matches at each node, and count it in `fired`.

    Where none matches, `on_refusal` is told why each of them doesn't.
    """
    overwritten = compilation.analysis(memory).overwritten
    is_changed, length = False, len(compilation.graph.nodes)
    for node in list(compilation.graph.nodes):
        refusals: dict[str, str] = {}
        for rule in rules.get(node.target, ()):
            name, replacements = f"fusion.{rule.__name__}", _replacements(rule, node, overwritten)
            if isinstance(replacements, str):
                refusals[name] = replacements
                continue
            compilation.on_rewrite(name, replacements)
            replace(replacements)
            compilation.fired[name] += 1
            is_changed = True
            break
        else:
            for name, reason in refusals.items():
                compilation.on_refusal(name, node, reason)
    # Nodes of a replacement that was refused are left for `remove_dead_code`.
    return is_changed or len(compilation.graph.nodes) > length


def _replacements(rule: Rule, node: fx.Node, overwritten: frozenset[fx.Node]) -> Replacements | str:
    """Return the replacements of `rule` at `node`, or why there are none.

    There are none if an overwritten value takes part, which must be read exactly where it was read.
    """
    known = set(node.graph.nodes) if overwritten else set()
    with node.graph.inserting_before(node):
        replacements = rule(node)
    if isinstance(replacements, str):
        return replacements
    if not replacements:
        return "nothing reads its results"
    if overwritten and not overwritten.isdisjoint(_taking_part(replacements, known)):
        return "a value that takes part is overwritten later"
    if not all(map(_is_alike, replacements, replacements.values())):
        return "the result would have another shape, dtype or strides"
    return replacements


def _taking_part(replacements: Replacements, known: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes that are replaced, and the `known` nodes that the new ones are made of."""
    found, begun = set(replacements), list(replacements.values())
    while begun:
        node = begun.pop()
        if node in known:
            found.add(node)
        else:
            begun += node.all_input_nodes
    return found


def times_one(node: fx.Node) -> Replacements | str:
    """Replace x·1 by x, unless it, or a view of it, is a result with memory of its own."""
    x, factor = arguments(node)
    if factor != 1:
        return "the factor is not 1"
    if any(user.op == "output" or viewed(user) is node for user in node.users):
        return "it, or a view of it, may be a result, which has memory of its own"
    return {node: x}


def channel_sums(node: fx.Node) -> Replacements | str:
    """Sum g·x and g over all dimensions but the channels, reading both once."""
    g, x = arguments(node)
    if not _are_maps(g, x):
        return "the factors are not two CPU feature maps of one shape, dtype and memory format"
    product_sum, g_sum = (_channel_sum(value, node) for value in (node, g))
    if product_sum is None or g_sum is None:
        return "the product and its first factor are not both summed over all but the channels"
    if len(node.users) > 1:
        return "more than the sum reads the product"
    graph, sums = node.graph, emit(node.graph, CHANNEL_SUMS, g, x, None)
    return {
        old: emit(
            graph, aten.view.default, emit(graph, operator.getitem, sums, i), fake_value(old).shape
        )
        for i, old in enumerate((product_sum, g_sum))
    }


def centered_sums(node: fx.Node) -> Replacements | str:
    """Compute Σ g·x - c·Σ g by channel as Σ g·(x - c), which is exactly 0 where x is c.

    It is the gradient of batch norm's weight, whose two terms would leave their rounding errors.
    """
    for products, product in permutations(arguments(node)):
        if node.kwargs or not calls_for_one(product, aten.mul.Tensor):
            continue
        total, center = arguments(product)
        is_negative = calls(total, aten.neg.default) and isinstance(center, fx.Node)
        parts = [_part_of_sums(value) for value in (products, *total.args)] if is_negative else []
        if [position for _, position in parts] != [0, 1] or parts[0][0] is not parts[1][0]:
            continue
        sums = parts[0][0]
        _, x, known = arguments(sums)
        shapes = fake_value(center).shape, fake_value(node).shape
        is_vector = shapes == (fake_value(x).shape[1:2],) * 2 and fake_value(center).is_contiguous()
        if known is None and is_vector and center < sums:
            return _centered_sums(node, sums, center)
    return NO_CENTERED_SUMS


def _part_of_sums(value: Any) -> tuple[Any, int]:
    """Return the sums by channel that a value is a view of, and its position among them, or -1."""
    while isinstance(value, fx.Node) and (base := viewed(value)) is not None:
        value = base
    if calls(value, operator.getitem) and calls(value.args[0], CHANNEL_SUMS):
        return value.args[0], value.args[1]
    return None, -1


def _centered_sums(node: fx.Node, sums: fx.Node, center: fx.Node) -> Replacements:
    """Replace sums by such around `center`, and `node` by the first of them."""
    graph, (g, x, _) = node.graph, arguments(sums)
    with graph.inserting_before(sums):
        centered = emit(graph, CHANNEL_SUMS, g, x, center)
        products, total = (emit(graph, operator.getitem, centered, i) for i in (0, 1))
    totals = [user for user in sums.users if user.args[1] == 1]
    return {node: products, **dict.fromkeys(totals, total)}


def deviation(node: fx.Node) -> Replacements | str:
    """Compute k·(x - m) + c/n, the derivative of mean and variance, as (c/n - k·m) + k·x."""
    product, quotient = arguments(node)
    if not (calls_for_one(product, aten.mul.Tensor) and calls_for_one(quotient, aten.div.Scalar)):
        return NO_DEVIATION
    (factor, difference), (expanded, count) = arguments(product), arguments(quotient)
    if not (calls_for_one(difference, aten.sub.Tensor) and calls(expanded, aten.expand.default)):
        return NO_DEVIATION
    (x, mean), constant = arguments(difference), arguments(expanded)[0]
    if calls(mean, aten.mean.dim):
        mean = _known_mean(mean) or mean
    graph = node.graph
    shift = emit(graph, aten.div.Scalar, constant, count)
    shift = emit(graph, aten.sub.Tensor, shift, emit(graph, aten.mul.Tensor, factor, mean))
    return {node: emit(graph, aten.addcmul.default, shift, x, factor)}


def multiply_add(node: fx.Node) -> Replacements | str:
    """Compute y + u·v by one operation, if nothing else reads the product; v may be a number.

    It rounds once: where y may be -u·v, rounded, the sum would no longer be 0, and its square root
    may be NaN.  So it doesn't apply where an operation follows that tells a small number from 0.
    """
    if node.kwargs:
        return "the sum scales an operand"
    products = [
        (product, y)
        for product, y in permutations(arguments(node), 2)
        if calls_for_one(product, aten.mul.Tensor) and isinstance(y, fx.Node)
    ]
    if not products:
        return "no operand is a product that the sum alone reads"
    if _tells_from_zero(node):
        return "an operation that follows tells a small number from 0"
    for product, y in products:
        u, v = arguments(product)
        alike = {fake_value(n).dtype for n in (y, u, v, node) if isinstance(n, fx.Node)}
        whole = fake_value(product).shape == fake_value(node).shape
        is_usual = len(alike) == 1 and whole and fake_value(node).is_floating_point()
        if not is_usual or _is_product_of(y, (u, v)):
            continue
        if isinstance(v, fx.Node):
            return {node: emit(node.graph, aten.addcmul.default, y, u, v)}
        return {node: emit(node.graph, aten.add.Tensor, y, u, alpha=v)}
    return "the operands share a factor, or differ in shape or dtype, or are integers"


def _tells_from_zero(node: fx.Node) -> bool:
    """True if element-wise operations lead from a node to one that isn't continuous at 0."""
    found, begun = {node}, [node]
    while begun:
        operand = begun.pop()
        for user in operand.users:
            name = getattr(getattr(user.target, "overloadpacket", None), "__name__", "")
            is_divisor = name == "div" and user.args[0] is not operand
            is_root = name == "pow" and user.args[1] not in (1, 2, 3, 4)
            if name in NOT_CONTINUOUS_AT_ZERO or is_divisor or is_root:
                return True
            is_pointwise = torch.Tag.pointwise in getattr(user.target, "tags", ())
            if user not in found and (is_pointwise or viewed(user) is operand):
                found.add(user)
                begun.append(user)
    return False


def _is_product_of(y: fx.Node, factors: Sequence[Any]) -> bool:
    """True if `y` is a product, up to its sign and a number, that has one of these factors."""
    signs = (aten.neg.default, aten.mul.Scalar, aten.div.Scalar)
    operands = [operand for operand in arguments(y) if isinstance(operand, fx.Node)]
    if y.target in signs or (y.target is aten.mul.Tensor and len(operands) == 1):
        return _is_product_of(operands[0], factors)
    powers = (aten.mul.Tensor, aten.square.default, aten.pow.Tensor_Scalar)
    return y.target in powers and not set(operands).isdisjoint(factors)


def max_pool(node: fx.Node) -> Replacements | str:
    """Pool by a kernel that keeps the position of each maximum as a byte, for the gradients too."""
    x, kernel, *how = arguments(node)
    usual: tuple[Any, ...] = ([], [0, 0])
    stride, padding, *rest = (*how, *usual[len(how) :])  # which may be left out
    stride = stride or kernel
    parts = {part.args[1]: part for part in node.users}
    gradients = list(parts[1].users) if 1 in parts else []
    operation = aten.max_pool2d_with_indices_backward.default
    is_all = all(calls(each, operation) and each.args[-1] is parts[1] for each in gradients)
    if 0 not in parts or not is_all:
        return "more than the gradient reads the positions of the maxima"
    value = fake_value(x)
    is_channels_last = value.is_contiguous(memory_format=torch.channels_last)
    supported = max_pool_kernel.is_supported(value, kernel, stride, padding, *rest)
    if not is_channels_last:
        return "the feature map is not channels_last"
    if not supported:
        return "the kernel does not support the dtype, the window or this machine"
    max_pool_kernel.KERNEL.begin(value.dtype)
    graph, (image, small) = node.graph, (fake_value(each).shape[2:] for each in (x, parts[0]))
    results = emit(graph, max_pool_kernel.MAX_POOL, x, kernel, stride, padding, list(small))
    maxima, taps = (emit(graph, operator.getitem, results, i) for i in (0, 1))
    replaced = {parts[0]: maxima}
    for each in gradients:
        with graph.inserting_before(each):
            operands = arguments(each)[0], taps, kernel, stride, padding, list(image)
            replaced[each] = emit(graph, max_pool_kernel.MAX_POOL_BACKWARD, *operands)
    return replaced


def rectified(node: fx.Node) -> Replacements | str:
    """Apply a ReLU where a Winograd convolution writes its tiles."""
    (convolution,) = arguments(node)
    if not calls_for_one(convolution, CONVOLUTION):
        return "its operand is not a Winograd convolution that it alone reads"
    operands = arguments(convolution)[:5]  # without the last one, relu
    return {node: emit(node.graph, CONVOLUTION, *operands, True)}


def as_stored(node: fx.Node) -> Replacements | str:
    """Compute statistics of converted feature maps from the bfloat16 maps in memory."""
    operation: Any = node.target
    count = NUMBER_OF_MAPS[operation]
    narrow = [_narrow(operand) for operand in arguments(node)[:count]]
    if None in narrow:
        return "the operands are not bfloat16 feature maps, converted to float32"
    if not build.is_available():
        return "there is no C++ compiler"
    moments.KERNEL.begin(torch.bfloat16)
    results = emit(node.graph, operation, *narrow, *arguments(node)[count:])
    return {part: emit(node.graph, operator.getitem, results, part.args[1]) for part in node.users}


def scaled(node: fx.Node) -> Replacements | str:
    """Scale, and maybe shift, the channels of a bfloat16 feature map by one operation.

    Separate operations in float32 would each read and write the map, and so would conversions.
    """
    result = node.args[0]
    if fake_value(node).dtype is not torch.bfloat16 or not isinstance(result, fx.Node):
        return "it is not a conversion to bfloat16"
    if calls_for_one(result, aten.addcmul.default) and not result.kwargs:
        shift, factors = arguments(result)[0], arguments(result)[1:]
    elif calls_for_one(result, aten.mul.Tensor):
        shift, factors = None, arguments(result)
    else:
        return "its operand is not a product, maybe with a sum, that it alone reads"
    for x, scale in permutations(factors):
        narrow = isinstance(x, fx.Node) and _narrow(x)
        if not narrow or not _are_maps(narrow) or not _is_of_channels(scale, x):
            continue
        if shift is None or _is_of_channels(shift, x):
            moments.KERNEL.begin(torch.bfloat16)
            line = emit(node.graph, aten.view.default, scale, (-1,))
            plus = shift and emit(node.graph, aten.view.default, shift, (-1,))
            return {node: emit(node.graph, SCALE_AND_SHIFT, narrow, line, plus)}
    return "it is not a bfloat16 map times one number for each channel, and plus one"


def _is_of_channels(value: Any, like: fx.Node) -> bool:
    """True if the value is one number for each channel of `like`, of its dtype and contiguous."""
    if not isinstance(value, fx.Node) or not build.is_available():
        return False
    x, numbers = fake_value(like), fake_value(value)
    shape = [1] * (x.ndim - numbers.ndim) + list(numbers.shape)
    is_row = numbers.is_contiguous() and numbers.dtype is x.dtype
    return is_row and shape == [n if d == 1 else 1 for d, n in enumerate(x.shape)]


def _narrow(value: fx.Node) -> fx.Node | None:
    """Return the bfloat16 operand if `value` is its conversion to float32, with equal strides."""
    if not calls(value, aten._to_copy.default):
        return None
    before, after = fake_value(value.all_input_nodes[0]), fake_value(value)
    types = before.dtype, after.dtype
    usual = types == (torch.bfloat16, torch.float32) and before.stride() == after.stride()
    return value.all_input_nodes[0] if usual else None


OPERATION_RULES: dict[Any, tuple[Rule, ...]] = {
    aten.max_pool2d_with_indices.default: (max_pool,),
    aten.relu.default: (rectified,),
    aten.mul.Scalar: (times_one,),
    aten.mul.Tensor: (channel_sums,),
    aten.add.Tensor: (deviation, centered_sums, multiply_add),
}
STATISTICS_RULES: dict[Any, tuple[Rule, ...]] = {
    CHANNEL_MOMENTS: (as_stored,),
    CHANNEL_SUMS: (as_stored,),
}
SCALE_RULES: dict[Any, tuple[Rule, ...]] = {aten._to_copy.default: (scaled,)}


def _is_alike(old: fx.Node, new: fx.Node) -> bool:
    """True if the nodes have the same shape, dtype and strides, which views depend on."""
    before, after = ((x.shape, x.dtype, x.stride()) for x in map(fake_value, (old, new)))
    return before == after


def _are_maps(*nodes: Any) -> bool:
    """True if the nodes are floating CPU feature maps of one shape, dtype and memory format."""
    if not all(isinstance(node, fx.Node) for node in nodes):
        return False
    values = [fake_value(node) for node in nodes]
    if len({(x.shape, x.dtype) for x in values}) > 1 or values[0].ndim not in (2, 4):
        return False
    usual = values[0].is_floating_point() and values[0].device.type == "cpu"
    formats = [torch.contiguous_format, torch.channels_last][: values[0].ndim // 2]
    return usual and any(
        all(x.is_contiguous(memory_format=memory_format) for x in values)
        for memory_format in formats
    )


def _is_all_but_channels(dims: Sequence[int], x: Tensor) -> bool:
    """True if `dims` are all dimensions of `x` but the channels; those of size 1 may be missing."""
    return 1 not in dims and all(n == 1 or d in dims for d, n in enumerate(x.shape) if d != 1)


def _channel_sum(value: fx.Node, after: fx.Node) -> fx.Node | None:
    """Return the node after `after` that sums `value` over all but the channels, if any."""
    for user in value.users:
        is_sum = user.target is aten.sum.dim_IntList and not user.kwargs and user >= after
        if is_sum and _is_all_but_channels(arguments(user)[1], fake_value(value)):
            return user
    return None


def _known_mean(mean: fx.Node) -> fx.Node | None:
    """Return the mean as the operation gives it that also gives the variance, if there is one."""
    x, dims, *_ = arguments(mean)
    if not _is_all_but_channels(dims, fake_value(x)):
        return None
    for statistics in x.users:
        position = MEAN_OF_STATISTICS.get(statistics.target)
        if statistics.target is aten.var_mean.correction:
            same = _is_all_but_channels(arguments(statistics)[1], fake_value(x))
            position = position if same else None
        for value in statistics.users if position is not None else ():
            if value.args[1] == position:
                return emit(mean.graph, aten.view.default, value, fake_value(mean).shape)
    return None
