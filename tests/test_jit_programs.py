"""Small programs that have gone wrong, or nearly: compiled they give what they give as they are."""

import pytest
import torch
import torch.nn.functional as F

from funcnets import jit
from funcnets.compiler import TraceError

pytestmark = pytest.mark.usefixtures("verified")

BACKENDS = ("graph", "native")
aten = torch.ops.aten


def maps(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weight(outputs=16, inputs=8, side=3):
    return maps(outputs, inputs, side, side, seed=1)


def group_norm(x, w):
    return torch.relu(F.group_norm(F.conv2d(x, w, padding=1), 4) * 2) + 1


def group_norm_then_flat(x, w):
    return F.group_norm(F.conv2d(x, w, padding=1), 4).flatten(1).square() @ torch.ones(1024, 3)


def gradient_of_group_norm(x, w):
    def loss(w):
        return F.silu(F.group_norm(F.conv2d(x, w, padding=1), 4)).square().sum()

    return torch.func.grad(loss)(w)


def shuffled(x, w):
    return torch.relu(torch.channel_shuffle(F.conv2d(x, w, padding=1), 4) * 2) + 1


def rolled(x):
    return torch.relu(x.roll(1, 2) * 2) + 1


def gradient_of_glu(x):
    return torch.func.grad(lambda x: (F.glu(x, 1) * 3).square().sum())(x) * 2 + 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "function", [group_norm, group_norm_then_flat, gradient_of_group_norm, shuffled]
)
def test_operations_whose_strides_are_not_those_of_fake_tensors(function, backend):
    given = maps(4, 8, 8, 8), weight()
    torch.testing.assert_close(jit(function, backend=backend)(*given), function(*given))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", [rolled, gradient_of_glu])
def test_such_operations_on_channels_last_maps(function, backend):
    x = maps(4, 8, 8, 8).to(memory_format=torch.channels_last)
    torch.testing.assert_close(jit(function, backend=backend)(x), function(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 4), (0, 3, 4, 4)])
def test_empty_tensors(shape, backend):
    def function(x):
        return torch.relu(x * 2) + x

    assert jit(function, backend=backend)(torch.empty(shape)).shape == shape


def product_then_written(x, w):
    h = F.conv2d(x, w, padding=1)
    p = h * h.sigmoid()
    F.relu(h, inplace=True)
    return p + h


def gated_then_added_to(x, w):
    h = x * 2.0
    gated = h * w.sum()
    h += x
    return h + gated


def converted_then_written(x, w):
    u = x.bfloat16() * 2.0
    v = u.float()
    u.add_(5.0)
    return torch.relu(v) * 2 + v + u


def scaled_then_written(x, w):
    u = x.bfloat16() * 2
    factor = w.sum((0, 2, 3)).view(1, 8, 1, 1)
    f = u.float() * factor + factor
    u.add_(4.0)
    return f.to(torch.bfloat16), u


def times_one_then_written(x, w):
    u = x * 2.0
    y = aten.mul.Scalar(u, 1)
    u.add_(5.0)
    return y * 3.5 + u.sum()


def sums_then_written(x, w):
    g = x * 2.0
    product = (g * x).sum((0, 2, 3))
    g.mul_(0.5)
    return product, g.sum((0, 2, 3)), g


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "function",
    [
        product_then_written,
        gated_then_added_to,
        converted_then_written,
        scaled_then_written,
        times_one_then_written,
        sums_then_written,
    ],
)
def test_what_is_written_to_was_read_before(function, backend):
    given = maps(2, 8, 6, 6), weight(8)
    torch.testing.assert_close(jit(function, backend=backend)(*given), function(*given))


@pytest.mark.parametrize(
    ("x", "w", "b", "padding"),
    [
        ((1, 1, 28, 28), (6, 16, 5, 5), None, 0),
        ((4, 1, 28, 28), (16, 1, 5, 5), (1,), 0),
        ((4, 1, 28, 28), (6, 1, 5, 5), (1,), 0),
        ((8, 64, 24, 24), (192, 32, 3, 3), None, 1),
        ((8, 64, 24, 24), (192, 64, 3, 3), (7,), 1),
        ((8, 64, 24, 24), (192, 64, 3, 3), None, -1),
        ((512, 16, 2, 2), (8, 16, 2, 2), (1,), 0),
        ((4, 16, 8, 8), (8, 16, 1, 1), (1,), 0),
        ((4, 64, 2, 2), (64, 64, 5, 5), None, 0),
        ((4, 16, 8, 8), (8, 16, 3), None, 0),
    ],
)
def test_convolutions_of_what_does_not_fit_raise_what_aten_raises(x, w, b, padding):
    given = maps(*x), maps(*w), None if b is None else maps(*b)

    def function(x, w, b):
        return F.conv2d(x, w, b, padding=padding)

    with pytest.raises(RuntimeError):
        function(*given)
    with pytest.raises(RuntimeError):
        jit(function, backend="graph")(*given)


def test_convolutions_of_two_types_raise_what_aten_raises():
    given = maps(4, 1, 28, 28), maps(6, 1, 5, 5, dtype=torch.float64)
    for function in (F.conv2d, jit(lambda x, w: F.conv2d(x, w), backend="graph")):
        with pytest.raises(RuntimeError, match="same"):
            function(*given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_max_pool_with_the_usual_stride(memory_format, backend):
    x = maps(2, 16, 8, 8).to(memory_format=memory_format)

    def function(x):
        return torch.func.grad(lambda x: F.max_pool2d(x, 2).square().sum())(x), F.max_pool2d(x, 2)

    torch.testing.assert_close(jit(function, backend=backend)(x), function(x))


def chunks(x):
    b, c = torch.unsafe_chunk(x, 2)
    return torch.relu(b), torch.sigmoid(c)


def chunks_of_what_is_read(x):
    a = x.exp()
    b, c = torch.unsafe_chunk(a, 2)
    return torch.relu(b - 0) + torch.tanh(c) + a.sum()


def splits(x):
    a = x.exp()
    b, c = torch.unsafe_split_with_sizes(a, [1, 3])
    return torch.relu(b), torch.tanh(c), a


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", [chunks, chunks_of_what_is_read, splits])
def test_parts_that_share_memory_without_saying_so(function, backend):
    x = maps(4, 8)
    expected, before = function(x.clone()), x.clone()
    torch.testing.assert_close(jit(function, backend=backend)(x), expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_with_a_number_times_a_number(backend):
    x = maps(4, 8)

    def function(x):
        return torch.relu(aten.add.Scalar(x, 2, 3)) * 2

    torch.testing.assert_close(jit(function, backend=backend)(x), function(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_is_a_kind_of_call(backend):
    a, b = maps(64, 64), maps(64, 64, seed=1)

    def function(a, b):
        return torch.relu(a @ b) * 2 + 1

    jitted = jit(function, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(jitted(a, b), function(a, b))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given, expected = jitted(a, b), function(a, b)
        assert given.dtype is expected.dtype is torch.bfloat16
        torch.testing.assert_close(given, expected, rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_type_is_a_kind_of_call(backend):
    x = torch.rand(8, 4096)

    def function(x):
        return torch.relu(x * torch.ones(4096)) * 2 + 1

    jitted = jit(function, backend=backend)
    torch.set_default_dtype(torch.float64)
    try:
        assert jitted(x).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(jitted(x), function(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_captured_tensor_cannot_be_donated(backend):
    w, x = maps(8, 8), maps(8, 8, seed=1)
    step = jit(
        lambda p, x: (torch.relu(p * 2) - 1, (x @ w).sum()), donate_argnums=0, backend=backend
    )
    before = w.clone()
    with pytest.raises(ValueError, match="captured"):
        step(w.view(64).view(8, 8), x)
    assert torch.equal(w, before)
    _, total = step(w.clone(), x)
    torch.testing.assert_close(total, (x @ w).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_donated_tensor_counts_a_version(backend):
    w, x = maps(8, 8), maps(8, 8, seed=1)
    captures = jit(lambda x: x @ w, backend="graph")
    captures(x)
    jit(lambda w: w * 0.5 + 1 - w * w, donate_argnums=0, backend=backend)(w)
    with pytest.raises(TraceError, match=r"changed after"):
        captures(x)


def test_static_arguments_inside_tuples_are_told_apart():
    times = jit(lambda x, s: x * s[0], static_argnums=1, backend="graph")
    x = torch.arange(3)
    assert times(x, (2,)).dtype is torch.int64
    assert times(x, (2.0,)).dtype is torch.float32
    by = jit(lambda x, s: x / s, static_argnums=1, backend="graph")
    assert by(torch.ones(1), 0.0) == torch.inf
    assert by(torch.ones(1), -0.0) == -torch.inf


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_views(backend):
    z = torch.randn(16, 8, dtype=torch.cfloat)

    def function(x):
        return torch.relu(x * 2) + x

    jitted = jit(function, backend=backend)
    for x in (z.imag, z.conj().imag):
        torch.testing.assert_close(jitted(x), function(x))


def test_equal_results_are_not_one_tensor():
    def function(p):
        def new():
            return torch.zeros_like(p, memory_format=torch.preserve_format)

        return {"m": new(), "v": new(), "p": p.clone(memory_format=torch.contiguous_format)}

    state = jit(function, backend="graph")(maps(3, 3))
    state["m"].add_(1)
    assert not state["v"].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [lambda y: y.unsqueeze_(0), lambda y: y.t_()])
def test_a_shape_that_is_changed_in_place(change, backend):
    def function(x):
        y = torch.tanh(x)
        change(y)
        return torch.relu(y * 1.5) + 1

    x = maps(6, 8)
    torch.testing.assert_close(jit(function, backend=backend)(x), function(x))


@pytest.mark.parametrize("argnums", ["donate_argnums", "static_argnums"])
def test_a_number_of_no_argument_is_refused(argnums):
    with pytest.raises(ValueError, match="argument 7"):
        jit(lambda a: a + 1, **{argnums: 7})(torch.ones(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_made_of_arguments_alone_and_returned_comes_first_too(backend):
    def function(x, y):
        returned, read, other = x * 2, y * 3, y.cos()
        other += 1
        return returned, read.sin(), other

    given = maps(4, 8), maps(4, 8, seed=1)
    torch.testing.assert_close(jit(function, backend=backend)(*given), function(*given))


def flat_view(x):
    return x.view(x.shape[0], -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: flat_view(F.conv2d(x, w)),
        lambda x, w: flat_view(F.max_pool2d(F.relu(F.conv2d(x, w)), 2)) @ torch.ones(144, 3),
        torch.func.grad(lambda x, w: flat_view(F.max_pool2d(F.conv2d(x, w), 2)).sin().sum(), 1),
        torch.func.vmap(lambda x, w: F.max_pool2d(x, 2).view(-1) * w.sum(), (0, None)),
        lambda x, w: torch.func.jvp(lambda x: flat_view(F.conv2d(x, w)), (x,), (x.sin(),)),
    ],
    ids=["convolution", "pool", "grad", "vmap", "jvp"],
)
def test_a_view_of_a_map_whose_memory_format_a_lowering_chose(function, backend):
    given = maps(4, 8, 8, 8), weight()
    torch.testing.assert_close(jit(function, backend=backend)(*given), function(*given))


def written_view(x, w):
    y = F.conv2d(x, w)
    y.view(-1)[:5] = 7
    return y * 2


def view_of_what_is_written(x, w):
    y = F.conv2d(x, w)
    z = y.view(-1)
    y.mul_(3)
    return z * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", [written_view, view_of_what_is_written])
def test_such_a_view_that_is_written_to(function, backend):
    given = maps(4, 8, 8, 8), weight()
    torch.testing.assert_close(jit(function, backend=backend)(*given), function(*given))
