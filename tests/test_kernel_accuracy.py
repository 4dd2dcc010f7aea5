"""Kernels keep the digits that PyTorch keeps: of variances, and where products cancel."""

import pytest
import torch

import funcnets
from funcnets import layers, random
from funcnets.compiler.kernels.moments import channel_moments

BACKENDS = ("graph", "native")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("ratio", [0, 1e2, -1e4, 1e6])
@pytest.mark.parametrize("shape", [(32, 20, 14, 14), (3, 5, 3, 7), (700, 9)])
def test_variances_where_the_mean_is_large_beside_the_spread(shape, ratio, memory_format):
    x = (random.normal(random.key(0), shape, torch.float64) + ratio).float()
    if x.ndim == 4:
        x = x.contiguous(memory_format=memory_format)
    dims = [d for d in range(x.ndim) if d != 1]
    mean, variance = channel_moments(x)
    torch.testing.assert_close(
        variance.double(), x.double().var(dims, correction=0), rtol=2e-6, atol=0
    )
    torch.testing.assert_close(mean.double(), x.double().mean(dims), rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_where_the_mean_is_large(backend):
    norm = layers.batch_norm()
    x = random.normal(random.key(0), (32, 64, 14, 14)) + 1e4
    params, state = norm.init(random.key(0), x)
    update = funcnets.jit(
        lambda params, state, x: norm.apply(params, state, x, train=True)[1], backend=backend
    )
    variance = (update(params, state, x)["running_var"].double() - 0.9) / 0.1
    torch.testing.assert_close(variance, x.double().var((0, 2, 3)), rtol=4e-6, atol=0)


def weight_gradient(x, g, backend):
    """Return the gradient of batch norm's weight, where g is that of its output."""
    norm = layers.batch_norm()
    params, state = norm.init(random.key(0), x)

    def gradient(params, x, g):
        pulled = torch.func.vjp(lambda p: norm.apply(p, state, x, train=True)[0], params)[1]
        return pulled(g)[0]["weight"]

    return funcnets.jit(gradient, backend=backend)(params, x, g)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_weight_of_a_constant_channel_has_no_gradient(dtype, memory_format, backend):
    x, g = (random.normal(random.key(i), (70, 3, 8, 8)).to(dtype) for i in (0, 1))
    x[:, 1] = 3.7
    x, g = (each.contiguous(memory_format=memory_format) for each in (x, g))
    assert (weight_gradient(x, g, backend) == 0).tolist() == [False, True, False]
    rows = weight_gradient(x[:, :, 0, 0].clone(), g[:, :, 0, 0].clone(), backend)
    assert (rows == 0).tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_the_weight_where_the_mean_is_large(backend):
    """A difference of two sums would be off by 1.3e-4."""
    x, g = (random.normal(random.key(i), (32, 8, 14, 14)) for i in (0, 1))
    expected = weight_gradient((x + 1e3).double(), g.double(), backend)
    actual = weight_gradient(x + 1e3, g, backend).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-5 * expected.abs().max())


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["float32", "bfloat16", "float64"]
)
def test_infinities_stay_in_their_channel(dtype):
    x = torch.ones(4, 3, 5, 5, dtype=dtype)
    x[2, 1, 3, 3] = torch.inf
    mean, variance = channel_moments(x)
    assert not mean[1].isfinite()
    assert variance[1].isnan()
    assert mean[[0, 2]].tolist() == [1, 1]
    assert variance[[0, 2]].tolist() == [0, 0]


CANCELLING = {
    "products": lambda x, y: x * y - y * x,
    "square": lambda x, y: x.square() - x * x,
    "halves": lambda x, y: x * x - (x * 2) * (x / 2),
    "negative": lambda x, y: -(x * y) + x * y,
    "negative multiple": lambda x, y: (x * y) * -1.0 + y * x,
    "spread": lambda x, y: torch.stack([x, x]).square().mean(0) - x * x,
    "sum of products": lambda x, y: (x + y) * (x - y) - (x - y) * (x + y),
    "addcmul": lambda x, y: torch.addcmul(y * 0, x, x) - x * x,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CANCELLING)
def test_the_root_of_a_difference_of_equal_products_is_zero(name, backend):
    """A product that isn't rounded before it is subtracted leaves a rest, half of them negative."""
    x, y = (random.normal(random.key(i), (1000,)) for i in (0, 1))

    def root(x, y):
        return torch.sqrt(CANCELLING[name](x, y))

    expected = root(x, y)
    torch.testing.assert_close(funcnets.jit(root, backend=backend)(x, y), expected, equal_nan=True)
    if name != "addcmul":  # which PyTorch itself rounds once, where it has vectors
        assert not expected.any()
