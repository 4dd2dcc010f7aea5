"""Table of the lowerings for tests: a new lowering joins all tests of test_lowerings.py by a row.

A row has calls of the operation that is lowered. All are in float64: tests convert them.
"""

import torch
from hypothesis import strategies as st
from lowering_rows import ALL, FLOATS, Call, Row, Variant, convolution, fitting, pairs, seeds
from tensors import numbers

from funcnets.compiler.lowerings import (
    avg_pool,
    bfloat16,
    dense,
    few_channels,
    grouped,
    layout,
    moments,
    one_channel,
    winograd,
)

aten = torch.ops.aten


# Winograd: channels fill a vector, or don't; tiles are few, or more than a block of them.
@st.composite
def winograd_calls(draw, side):
    padding = draw(pairs(0, side - 1))
    images = draw(st.sampled_from([1, 2, 30, 70]))
    inputs, outputs = draw(pairs(1, 18))
    x = (images, inputs, *fitting(draw, (side, side), padding, 9))
    weight = (outputs, inputs, side, side)
    return convolution(x, weight, padding=padding, seed=draw(seeds))


WINOGRAD = Row(
    winograd.FORWARD,
    {
        "3×3": Variant(convolution((8, 64, 14, 14), (96, 64, 3, 3), padding=1), winograd_calls(3)),
        "5×5": Variant(convolution((4, 48, 14, 14), (64, 48, 5, 5), padding=2), winograd_calls(5)),
    },
    {
        "stride": convolution((8, 64, 14, 14), (96, 64, 3, 3), padding=1, stride=2),
        "padding": convolution((8, 64, 14, 14), (96, 64, 3, 3), padding=3),
        "not square": convolution((8, 64, 14, 14), (96, 64, 3, 5), padding=2),
        "7×7": convolution((8, 64, 14, 14), (96, 64, 7, 7), padding=3),
        "few channels": convolution((8, 16, 14, 14), (16, 16, 3, 3), padding=1),
    },
    winograd.BACKWARD,
    tolerance={torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2},
    result_format=torch.channels_last,
    keeps_weight_format=True,
    needs_compiler=True,
    processor=((winograd, "has_avx512", False), (winograd, "has_bfloat16", False)),
)


@st.composite
def dense_calls(draw):
    side = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (3, 1)]))
    padding = draw(pairs(0, 2))
    kernel = [draw(st.integers(1, min(5, n + 2 * p))) for n, p in zip(side, padding, strict=True)]
    inputs, outputs = draw(pairs(1, 4))
    batch = draw(st.sampled_from([1, 2, 3, dense.MIN_LARGE_BATCH]))
    x, weight = (batch, inputs, *side), (outputs, inputs, *kernel)
    return convolution(x, weight, stride=draw(pairs(1, 3)), padding=padding, seed=draw(seeds))


DENSE = Row(
    dense.FORWARD,
    {
        "1×1": Variant(convolution((2, 4, 1, 1), (3, 4, 3, 3), padding=1), dense_calls()),
        "stride": Variant(convolution((2, 4, 2, 2), (3, 4, 3, 3), padding=1, stride=2)),
        "large batch": Variant(
            convolution((dense.MIN_LARGE_BATCH, 4, 2, 2), (3, 4, 3, 3), padding=1)
        ),
    },
    {
        "1×1 kernel": convolution((2, 4, 1, 1), (4, 4, 1, 1)),
        "9 pixels": convolution((2, 4, 3, 3), (4, 4, 3, 3), padding=1),
        "16 output pixels": convolution((2, 4, 2, 2), (4, 4, 3, 3), padding=2),
        "small batch": convolution((2, 4, 2, 2), (4, 4, 3, 3), padding=1),
    },
    dense.BACKWARD,
    dtypes=ALL,
    tolerance={torch.bfloat16: 2**-6},
)


def usual(kernel, stride, padding, dilation=(1, 1)):
    """Return strides of at most a window and paddings of less, as networks have.

    With others PyTorch's own convolutions by oneDNN read and write beyond their tensors (2.14, seen
    by MALLOC_CHECK_=3), where a window is in the padding alone or pixels are in none.
    """
    windows = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    strides = [min(s, window) for s, window in zip(stride, windows, strict=True)]
    paddings = [min(p, window - 1) for p, window in zip(padding, windows, strict=True)]
    return {"stride": strides, "padding": paddings}


@st.composite
def grouped_calls(draw):
    groups, inputs, outputs, batch = (draw(st.integers(1, 4)) for _ in range(4))
    kernel, sides, dilation = draw(pairs(1, 3)), draw(pairs(1, 3)), draw(pairs(1, 2))
    return convolution(
        (batch, groups * inputs, *sides),
        (groups * outputs, inputs, *kernel),
        **usual(kernel, draw(pairs(1, 2)), (4, 4), dilation),
        dilation=dilation,
        groups=groups,
        seed=draw(seeds),
    )


GROUPED = Row(
    grouped.FORWARD,
    {
        "4 groups": Variant(
            convolution((2, 12, 1, 1), (8, 3, 3, 3), padding=1, groups=4), grouped_calls()
        )
    },
    {
        "81 pixels": convolution((2, 32, 9, 9), (64, 8, 3, 3), padding=1, groups=4),
        "one group": convolution((2, 8, 1, 1), (16, 8, 3, 3), padding=1),
        "many groups": convolution((2, 130, 1, 1), (130, 2, 3, 3), padding=1, groups=65),
        "depthwise": convolution((2, 4, 1, 1), (24, 1, 3, 3), padding=1, groups=4),
    },
    grouped.BACKWARD,
    dtypes=ALL,
    tolerance={torch.bfloat16: 2**-6},
)


def few_channels_variant(inputs, outputs, side, kernel):
    def call(batch, seed=0):
        return convolution((batch, inputs, *side), (outputs, inputs, *kernel), seed=seed)

    return Variant(call(2), st.builds(call, st.sampled_from([1, 3, 17, 40]), seeds))


# Rows of one vector, of two that overlap, and in two blocks; blocks of all outputs, some, and one.
FEW_CHANNELS = Row(
    few_channels.FORWARD,
    {
        "1 to 6": few_channels_variant(1, 6, (28, 28), (5, 5)),
        "6 to 16": few_channels_variant(6, 16, (12, 12), (5, 5)),
        "2 to 3": few_channels_variant(2, 3, (9, 17), (7, 4)),
        "3 to 13": few_channels_variant(3, 13, (6, 13), (5, 5)),
        "1 to 1": few_channels_variant(1, 1, (5, 32), (5, 7)),
    },
    {
        "many channels": convolution((3, 6, 12, 12), (17, 6, 5, 5)),
        "large image": convolution((3, 1, 33, 28), (6, 1, 5, 5)),
        "few taps": convolution((3, 1, 28, 28), (6, 1, 4, 6)),
        "large kernel": convolution((3, 1, 28, 28), (6, 1, 8, 8)),
        "less than a vector": convolution((3, 1, 12, 7), (6, 1, 5, 5)),
        "stride": convolution((3, 1, 28, 28), (6, 1, 5, 5), stride=(2, 1)),
        "padding": convolution((3, 1, 28, 28), (6, 1, 5, 5), padding=(1, 0)),
        "channels_last": convolution((3, 2, 28, 28), (6, 2, 5, 5)).map(
            lambda x: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
        ),
    },
    few_channels.BACKWARD,
    rounds_once=True,
    keeps_weight_format=True,
    result_format=torch.contiguous_format,
    needs_compiler=True,
    processor=((few_channels, "has_avx512", False),),
)


@st.composite
def one_channel_calls(draw, kernel, stride, padding):
    """Return calls of which some have rows that are no multiple of a block."""
    output = draw(st.integers(1, 5)), draw(st.integers(6, 15))
    side = [
        (n - 1) * s + k - 2 * p + draw(st.integers(0, s - 1))
        for n, s, k, p in zip(output, stride, kernel, padding, strict=True)
    ]
    x, weight = (draw(st.integers(1, 20)), 1, *side), (16 * draw(st.integers(1, 3)), 1, *kernel)
    return convolution(x, weight, stride=stride, padding=padding, seed=draw(seeds))


def one_channel_variant(kernel, stride, padding):
    example = convolution((3, 1, 31, 31), (32, 1, *kernel), stride=stride, padding=padding)
    return Variant(example, one_channel_calls(kernel, stride, padding))


ONE_CHANNEL = Row(
    one_channel.FORWARD,
    {
        "7×7": one_channel_variant((7, 7), (2, 2), (3, 3)),
        "11×11": one_channel_variant((11, 11), (4, 4), (1, 1)),
        "3×2": one_channel_variant((3, 2), (1, 3), (0, 2)),
    },
    {
        "channels": convolution((2, 2, 28, 28), (64, 2, 7, 7)),
        "outputs that fill no block": convolution((2, 1, 28, 28), (24, 1, 7, 7)),
        "five pixels in a row": convolution((2, 1, 28, 11), (64, 1, 7, 7)),
        "five taps": convolution((2, 1, 28, 28), (64, 1, 5, 1)),
    },
    one_channel.BACKWARD,
    dtypes=FLOATS,
    result_format=torch.channels_last,
    keeps_weight_format=True,
    needs_compiler=True,
    processor=((one_channel, "has_avx512", False), (layout, "has_avx512", False)),
    backends=("graph", "native"),
)


@st.composite
def layout_calls(draw):
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (4, 4)]))
    how = usual(kernel, draw(pairs(1, 2)), draw(st.sampled_from([(0, 0), (1, 1), (0, 1)])))
    x = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 8])))
    x += tuple(fitting(draw, kernel, how["padding"], 7))
    weight = (draw(st.sampled_from([1, 3, 8])), x[1], *kernel)
    return convolution(x, weight, **how, seed=draw(seeds))


def layout_row(has_avx512):
    return Row(
        layout.FORWARD,
        {
            "3×3": Variant(
                convolution((2, 8, 9, 9), (8, 8, 3, 3), padding=1, stride=2), layout_calls()
            ),
            "1×1": Variant(convolution((2, 8, 2, 2), (3, 8, 1, 1))),
        },
        {"groups": convolution((2, 8, 9, 9), (8, 4, 3, 3), groups=2)},
        layout.BACKWARD,
        dtypes=ALL,
        tolerance={torch.bfloat16: 2**-6},
        keeps_weight_format=True,
        processor=((layout, "has_avx512", has_avx512),),
    )


@st.composite
def max_pool_calls(draw):
    stride, ceil_mode = list(draw(pairs(1, 2))), draw(st.booleans())
    x = numbers(2, 3, 6, 7, seed=draw(seeds))
    return Call(x, [3, 3], stride, [1, 1], [1, 1], ceil_mode)


HOW = ([3, 3], [2, 2], [1, 1], [1, 1], False)
MAX_POOL = Row(
    layout.MAX_POOL_FORWARD,
    {"3×3": Variant(Call(numbers(2, 3, 6, 7), *HOW), max_pool_calls())},
    {"no batch": Call(numbers(3, 6, 7), *HOW)},
    layout.MAX_POOL_BACKWARD,
    dtypes=ALL,
    tolerance={torch.bfloat16: 2**-6},
    same_bits=(layout.MAX_POOL_FORWARD,),
    result_format=torch.channels_last,
)


def avg_pool_variant(window):
    @st.composite
    def calls(draw):
        rows, columns, images, channels = (draw(st.integers(1, 4)) for _ in range(4))
        x = numbers(images, channels, rows * window[0], columns * window[-1], seed=draw(seeds))
        return Call(x, window, draw(st.sampled_from([window, []])))

    return Variant(Call(numbers(2, 3, 12, 8), window), calls())


AVG_POOL = Row(
    avg_pool.FORWARD,
    {
        "×".join(map(str, window)): avg_pool_variant(window)
        for window in ([1, 1], [2, 2], [1, 2], [2, 1], [4, 1], [3, 1], [2])
    },
    {
        "pixels left over": Call(numbers(2, 3, 5, 4), [2, 2]),
        "stride": Call(numbers(2, 3, 6, 6), [2, 2], [1, 1]),
        "padding": Call(numbers(2, 3, 6, 6), [2, 2], [2, 2], [1, 1]),
        "large window": Call(numbers(2, 3, 6, 6), [3, 3]),
        "divisor": Call(numbers(2, 3, 6, 6), [2, 2], [2, 2], [0, 0], False, True, 3),
        "no batch": Call(numbers(3, 6, 6), [2, 2]),
        "empty": Call(numbers(0, 3, 6, 6), [2, 2]),
        "channels_last": Call(numbers(2, 3, 6, 6).to(memory_format=torch.channels_last), [2, 2]),
    },
    avg_pool.BACKWARD,
    same_bits=(avg_pool.FORWARD, avg_pool.BACKWARD),
    result_format=torch.contiguous_format,
    needs_compiler=True,
    backends=("graph", "native"),
)


def maps(draw):
    """Return a feature map, or rows, whose mean is far from 0."""
    shape = [draw(st.integers(2, 4)), draw(st.integers(1, 9))]
    sides = draw(pairs(1, 5)) if draw(st.booleans()) else ()
    return 3 + numbers(*shape, *sides, seed=draw(seeds))


@st.composite
def var_mean_calls(draw):
    x = maps(draw)
    return Call(x, [0, *range(2, x.ndim)], correction=0)


X = 3 + numbers(4, 5, 6, 7)
VAR_MEAN = Row(
    moments.VAR_MEAN,
    {"map": Variant(Call(X, [0, 2, 3], correction=0), var_mean_calls())},
    {
        "unbiased": Call(X, [0, 2, 3], correction=1),
        "unbiased by default": Call(X, [0, 2, 3], correction=None),
        "kept dimensions": Call(X, [0, 2, 3], correction=0, keepdim=True),
        "pixels": Call(X, [2, 3], correction=0),
        "gaps": Call(X[:, :2], [0, 2, 3], correction=0),
        "rank": Call(X[..., 0], [0, 2], correction=0),
        "empty": Call(X[:0], [0, 2, 3], correction=0),
    },
    dtypes=FLOATS,
)


@st.composite
def sum_calls(draw):
    x = maps(draw)
    return Call(x, [0, *range(2, x.ndim)])


BFLOAT16_SUM = Row(
    moments.BFLOAT16_SUM,
    {"map": Variant(Call(X, [0, 2, 3]), sum_calls())},
    {
        "kept dimensions": Call(X, [0, 2, 3], True),
        "pixels": Call(X, [2, 3]),
        "gaps": Call(X.bfloat16()[:, :2], [0, 2, 3]),
        "rank": Call(X[..., 0], [0, 2]),
        "dtype": Call(X, [0, 2, 3], dtype=torch.float32),
        "empty": Call(X[:0], [0, 2, 3]),
    },
    dtypes=(torch.bfloat16,),
    needs_compiler=True,
)

BFLOAT16 = {lowering.operation: lowering for lowering in bfloat16.LOWERINGS}


@st.composite
def bfloat16_convolutions(draw):
    kernel, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    batch, inputs, outputs, stride = (draw(st.integers(1, 5)) for _ in range(4))
    how = usual((kernel, kernel), (stride, 1), (padding, padding))
    side = draw(st.integers(max(1, kernel - 2 * how["padding"][0]), 6))
    return convolution((batch, inputs, side, side + 1), (outputs, inputs, kernel, kernel), **how)


@st.composite
def products(draw, batched, added):
    rows, between, columns = (draw(st.integers(1, 5)) for _ in range(3))
    batch = [draw(st.integers(1, 5))] if batched else []
    factors = numbers(*batch, rows, between), numbers(*batch, between, columns, seed=1)
    if not added:
        return Call(*factors)
    scale = {name: draw(st.sampled_from([1, 0.5, -2])) for name in ("alpha", "beta")}
    return Call(numbers(*batch, rows, columns, seed=2), *factors, **scale)


def bfloat16_row(operation, example, calls, backward=None, **options):
    return Row(
        BFLOAT16[operation],
        {"any": Variant(example, calls)},
        {},
        BFLOAT16.get(backward),
        dtypes=(torch.bfloat16,),
        processor=((bfloat16, "has_bfloat16", False),),
        **options,
    )


MATRICES = numbers(4, 5), numbers(5, 3, seed=1)
BATCHES = numbers(2, 4, 5), numbers(2, 5, 3, seed=1)
ROWS = {
    "winograd": WINOGRAD,
    "dense": DENSE,
    "grouped": GROUPED,
    "few_channels": FEW_CHANNELS,
    "one_channel": ONE_CHANNEL,
    "layout, AVX2": layout_row(False),
    "layout, AVX-512": layout_row(True),
    "layout.max_pool": MAX_POOL,
    "avg_pool": AVG_POOL,
    "moments.var_mean": VAR_MEAN,
    "moments.bfloat16_sum": BFLOAT16_SUM,
    "bfloat16.convolution": bfloat16_row(
        aten.convolution.default,
        convolution((2, 3, 6, 7), (4, 3, 3, 3), stride=2, padding=1),
        bfloat16_convolutions(),
        aten.convolution_backward.default,
    ),
    "bfloat16.mm": bfloat16_row(aten.mm.default, Call(*MATRICES), products(False, False)),
    "bfloat16.addmm": bfloat16_row(
        aten.addmm.default, Call(numbers(4, 3), *MATRICES), products(False, True)
    ),
    "bfloat16.bmm": bfloat16_row(
        aten.bmm.default, Call(*BATCHES), products(True, False), per_example=False
    ),
    "bfloat16.baddbmm": bfloat16_row(
        aten.baddbmm.default,
        Call(numbers(2, 4, 3), *BATCHES),
        products(True, True),
        per_example=False,
    ),
}
