"""Each operation of funcnets' own is for fake tensors what it is for others."""

import pytest
import torch
from tensors import numbers

from funcnets.compiler.backends import inductor
from funcnets.compiler.kernels import (
    avg_pool,
    few_channels,
    max_pool,
    moments,
    one_channel,
    winograd,
)
from funcnets.compiler.lowerings import dense, layout

X, GRAD = numbers(2, 3, 6, 7), numbers(2, 4, 6, 7, seed=1)
LAST = X.to(memory_format=torch.channels_last)
WEIGHT, BIAS, PIXEL = (numbers(4, 3, 3, 3, seed=2), numbers(4, seed=3), numbers(4, 3, 1, 1, seed=4))
TINY = [1, 2, 3, 3, 2, 2, 1, 1, 1, 1]  # sides of input, kernel and output, stride and padding
GEOMETRY = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, …, groups
CALLS = [
    (inductor.CONVOLUTION_BACKWARD, (GRAD, LAST, WEIGHT, [4], *GEOMETRY, [True, True, True])),
    (inductor.CONVOLUTION_BACKWARD, (GRAD, X, WEIGHT, None, *GEOMETRY, [False, True, False])),
    (winograd.CONVOLUTION, (X, WEIGHT, BIAS, [1, 1], False)),
    (winograd.CONVOLUTION, (X, WEIGHT, BIAS, [1, 1], False, True)),
    (winograd.CONVOLUTION, (GRAD, WEIGHT, None, [1, 1], True)),
    (winograd.WEIGHT_GRADIENT, (GRAD, X, 3, [1, 1])),
    (layout.POINTWISE, (LAST, PIXEL, BIAS, [1, 1])),
    (layout.POINTWISE, (LAST, PIXEL, None, [2, 3])),
    (layout.COLUMN_GRADIENT, (GRAD, X, [3, 3], [1, 1], [1, 1])),
    (layout.COLUMN_GRADIENT, (GRAD[:, :, ::2, ::3], X, [1, 1], [2, 3], [0, 0])),
    (dense.GATHER_TAPS, (WEIGHT, TINY)),
    (dense.SCATTER_TAPS, (numbers(16, 6), WEIGHT, TINY)),
    (moments.CHANNEL_MOMENTS, (X,)),
    (moments.CHANNEL_SUMS, (GRAD[:, :3], X, BIAS[:3])),
    (moments.CHANNEL_SUM, (X.bfloat16(),)),
    (moments.SCALE_AND_SHIFT, (LAST, BIAS[:3], None)),
    (moments.SCALE_AND_SHIFT, (X.bfloat16(), BIAS[:3].float(), BIAS[:3].float())),
    (moments.CHANNEL_MOMENTS, (LAST.bfloat16(),)),
    (moments.CHANNEL_SUMS, (X[:, :, 0, 0].bfloat16(), LAST[:, :, 0, 0].bfloat16(), None)),
    (max_pool.MAX_POOL, (X, [3, 2], [2, 1], [1, 0], [3, 6])),
    (
        max_pool.MAX_POOL_BACKWARD,
        (LAST[..., :3], LAST[..., :3].byte(), [3, 3], [1, 2], [1, 1], [6, 6]),
    ),
    (avg_pool.AVG_POOL, (X[..., :6], [2, 3])),
    (avg_pool.AVG_POOL_BACKWARD, (X, [2, 1])),
    (few_channels.CONVOLUTION, (numbers(2, 3, 6, 9), numbers(4, 3, 3, 2, seed=2), BIAS)),
    (few_channels.INPUT_GRADIENT, (numbers(2, 4, 4, 8), numbers(4, 3, 3, 2, seed=2), [6, 9])),
    (few_channels.WEIGHT_GRADIENT, (numbers(2, 4, 4, 8), numbers(2, 3, 6, 9), [3, 2])),
    (one_channel.CONVOLUTION, (X[:, :1], numbers(16, 1, 3, 2), None, [2, 1], [1, 0])),
    (one_channel.WEIGHT_GRADIENT, (numbers(2, 16, 3, 6), X[:, :1], [3, 2], [2, 1], [1, 0])),
]


@pytest.mark.parametrize(("operation", "arguments"), CALLS, ids=[str(call[0]) for call in CALLS])
def test_operations_are_what_their_fakes_say(operation, arguments):
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    results = torch.library.opcheck(operation, arguments, **checks)
    assert set(results.values()) == {"SUCCESS"}


def test_every_operation_is_tried():
    names = {name for name in torch._C._dispatch_get_all_op_names() if "funcnets::" in name}
    assert {operation.name() for operation, _ in CALLS} == names
