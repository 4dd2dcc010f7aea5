"""Draws against JAX's recorded numbers, published test vectors, and under every transform."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from funcnets import random
from funcnets.random import generator

RECORDINGS = json.loads(Path(__file__).with_name("jax_recordings.json").read_text())
TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in generator._MANTISSA_BITS}
KEY = random.key(42)
SEEDS = st.integers(-(2**63), 2**63 - 1)

# One draw of every kind, as functions of a key.
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "split": lambda key: random.split(key, 3),
    "fold_in": lambda key: random.fold_in(key, 7),
    "bits": lambda key: random.bits(key, (3, 5)),
    "scalar": lambda key: random.uniform(key),
    "uniform": lambda key: random.uniform(key, (3, 5)),
    "uniform_range": lambda key: random.uniform(key, (257,), minval=-0.1234, maxval=0.1234),
    "uniform_float64": lambda key: random.uniform(key, (3, 5), torch.float64),
    "uniform_float16": lambda key: random.uniform(key, (257,), torch.float16, -0.1234, 0.1234),
    "uniform_bfloat16": lambda key: random.uniform(key, (257,), torch.bfloat16, -0.1234, 0.1234),
    "normal": lambda key: random.normal(key, (257,)),
    "normal_bfloat16": lambda key: random.normal(key, (257,), torch.bfloat16),
    "truncated_normal": lambda key: random.truncated_normal(key, -2.0, 2.0, (257,)),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (3, 5)),
    "permutation": lambda key: random.permutation(key, 50),
    "several_pieces": lambda key: random.uniform(key, (generator._CHUNK_ON_CPU + 3,)),
}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


def digest(tensor: Tensor) -> str:
    plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return hashlib.sha256(plain.numpy().tobytes()).hexdigest()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected)


def tensor_of(values: Any, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [
        ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_vectors(counter, key, result):
    # Random123's kat_vectors, threefry2x32 with 20 rounds.
    upper, lower = (tensor_of(generator._signed(word)) for word in counter)
    hashed = random.threefry2x32(tensor_of([generator._signed(word) for word in key]), upper, lower)
    assert tuple(int(word) & 0xFFFFFFFF for word in hashed) == result


def test_known_values_of_key_42():
    assert random.split(KEY, 3).tolist() == [
        [1832780943, 270669613],
        [64467757, -1378843660],
        [-1829035798, 255383827],
    ]
    assert random.bits(KEY, (4,)).tolist() == [2098992034, -1375260455, -1648100871, -1885421097]
    expected = tensor_of([0.48870957, 0.6797972, 0.6162715, 0.5610161], torch.float32)
    assert_same(random.uniform(KEY, (4,)), expected)


@pytest.mark.parametrize("record", RECORDINGS["keys"], ids=lambda record: str(record["seed"]))
def test_keys_and_bits_are_jax(record):
    key = random.key(record["seed"])
    assert_same(key, tensor_of(record["key"]))
    assert_same(random.split(key, 5), tensor_of(record["split"]))
    assert_same(random.bits(key, (3, 4)), tensor_of(record["bits"]))
    assert_same(random.bits(key), tensor_of(record["scalar_bits"]))
    for data, folded in zip((0, 7, 2**31 + 3, 2**32 - 1), record["fold_in"], strict=True):
        assert_same(random.fold_in(key, torch.tensor(data)), tensor_of(folded))
        key = random.fold_in(key, data)
        assert_same(key, tensor_of(folded))


@pytest.mark.parametrize(
    "record", RECORDINGS["uniform"], ids=lambda record: f"{record['dtype']}{record['range']}"
)
def test_uniform_is_jax(record):
    dtype = TYPES[record["dtype"]]
    low, high = record["range"]
    key = random.key(record["seed"])
    drawn = random.uniform(key, (11,), dtype, low, high)
    expected = tensor_of(record["values"], dtype)
    if dtype == torch.float64 and (low, high) != (0.0, 1.0):
        torch.testing.assert_close(drawn, expected, rtol=0.0, atol=2**-52 * (high - low))
    else:
        assert_same(drawn, expected)
        assert digest(random.uniform(key, (3000,), dtype, low, high)) == record["digest"]


def test_draws_of_several_pieces_are_jax(monkeypatch):
    record = RECORDINGS["large"]
    key, shape = random.key(record["seed"]), record["shape"]
    monkeypatch.setattr(generator, "_CHUNK_ON_CPU", 2**15)
    assert math.prod(shape) > 4 * generator._CHUNK_ON_CPU
    assert digest(random.bits(key, shape)) == record["bits"]
    assert digest(random.uniform(key, shape)) == record["uniform"]
    symmetric = random.uniform(key, shape, minval=-0.0123, maxval=0.0123)
    assert digest(symmetric) == record["symmetric"]
    assert digest(random.bernoulli(key, 0.5, shape)) == record["bernoulli"]


@pytest.mark.parametrize("record", RECORDINGS["normal"], ids=lambda record: record["dtype"])
def test_normal_is_jax_to_rounding(record):
    dtype, key = TYPES[record["dtype"]], random.key(record["seed"])
    draws = {
        "normal": random.normal(key, (100,), dtype),
        "truncated": random.truncated_normal(key, -2.0, 2.0, (50,), dtype),
        "one_sided": random.truncated_normal(key, 0.5, 3.0, (50,), dtype),
    }
    for name, drawn in draws.items():
        expected = tensor_of(record[name], dtype)
        if dtype.itemsize == 2:
            assert_same(drawn, expected)
        else:
            close = 6e-7 if dtype == torch.float32 else 1e-11
            torch.testing.assert_close(drawn, expected, rtol=close, atol=0.0)


def test_the_tails_of_normal_are_jax_to_a_few_units_in_the_last_place():
    record = RECORDINGS["tails"]
    drawn = random.normal(random.key(record["seed"]), (record["count"],))[record["places"]]
    expected = tensor_of(record["values"], torch.float32)
    assert expected.abs().max() > 4
    assert (drawn.view(torch.int32) - expected.view(torch.int32)).abs().max() <= 5


@pytest.mark.parametrize("record", RECORDINGS["masks"], ids=lambda record: str(record["p"]))
def test_bernoulli_masks_are_jax(record):
    key = random.fold_in(random.key(record["seed"]), record["fold_in"])
    kept = [value == "1" for value in record["mask"]]
    for p in (record["p"], torch.tensor(record["p"])):
        mask = random.bernoulli(key, p, record["shape"])
        assert_same(mask, tensor_of(kept, torch.bool).reshape(record["shape"]))


def test_bernoulli_takes_a_probability_for_each_position():
    chances = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    mask = random.bernoulli(KEY, chances, (4000, 3))
    assert not mask[:, 0].any()
    assert mask[:, 2].all()
    assert abs(mask[:, 1].double().mean() - 0.25) < 0.03
    assert_same(mask, random.uniform(KEY, (4000, 3), torch.float64) < chances)


@given(seed=SEEDS, start=st.integers(0, 2**63), count=st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_positions_beyond_32_bits_count_in_the_upper_word(seed, start, count):
    start -= start % generator._CHUNK_ON_CPU
    key = random.key(seed)
    first, second = generator._words(key, start, count)
    for index in range(count):
        upper, lower = divmod(start + index, 2**32)
        counter = (tensor_of(generator._signed(word)) for word in (upper, lower))
        assert (first[index], second[index]) == random.threefry2x32(key, *counter)


@given(seed=SEEDS, size=st.integers(0, 300), piece=st.sampled_from([1, 16, 128]))
@settings(deadline=None, max_examples=25)
def test_the_pieces_of_a_draw_do_not_show(seed, size, piece):
    key = random.key(seed)
    whole = random.bits(key, (size,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "_CHUNK_ON_CPU", piece)
        assert_same(random.bits(key, (size,)), whole)


@given(
    seed=SEEDS,
    dtype=st.sampled_from(list(TYPES.values())),
    low=st.floats(-10.0, 10.0),
    width=st.floats(0.0, 10.0),
)
@settings(deadline=None, max_examples=50)
def test_uniform_stays_in_its_range(seed, dtype, low, width):
    drawn = random.uniform(random.key(seed), (500,), dtype, low, low + width)
    bounds = torch.tensor([low, low + width], dtype=dtype)
    assert drawn.min() >= bounds[0]
    assert drawn.max() <= bounds[1]


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES.keys())
def test_moments(dtype):
    uniform = random.uniform(KEY, (20_000,), dtype).double()
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(uniform.var() - 1 / 12) < 0.003
    assert uniform.max() < 1.0
    normal = random.normal(KEY, (20_000,), dtype).double()
    assert abs(normal.mean()) < 0.03
    assert abs(normal.var() - 1.0) < 0.05
    cut = random.truncated_normal(KEY, -2.0, 2.0, (20_000,), dtype).double()
    assert cut.abs().max() <= 2.0
    assert abs(cut.var() - 0.7737) < 0.03


def test_children_of_a_key_differ():
    children = torch.cat([random.split(KEY, 200), random.split(random.key(43), 200)])
    folded = torch.stack([random.fold_in(random.key(7), index) for index in range(200)])
    assert len(torch.unique(torch.cat([children, folded]), dim=0)) == 600


@given(seed=SEEDS, n=st.integers(0, 200))
@settings(deadline=None, max_examples=30)
def test_permutation_is_a_permutation(seed, n):
    order = random.permutation(random.key(seed), n)
    assert_same(order.sort().values, torch.arange(n))


def test_permutation_is_uniform():
    orders = torch.func.vmap(lambda key: random.permutation(key, 4))(random.split(KEY, 24_000))
    ranks = (orders * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = ranks.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    # Chi-squared with 23 degrees of freedom: 49.7 is passed once in a thousand.
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7


def vmaps_a_change_of_type() -> bool:
    try:
        torch.func.vmap(lambda x: x.view(torch.int32))(torch.ones(2))
    except RuntimeError:
        return False
    return True


@each_draw
def test_vmap_over_keys_equals_one_key_at_a_time(draw, request):
    if "float16" in request.node.name and not vmaps_a_change_of_type():
        pytest.skip("this version of torch has no batching rule for what 16-bit draws do")
    keys = random.split(KEY, 3)
    assert_same(torch.func.vmap(draw)(keys), torch.stack([draw(key) for key in keys]))


@given(seed=st.integers(-(2**63), 2**63 - 1), count=st.integers(0, 20))
@settings(max_examples=20)
def test_split_keys_are_those_that_are_folded_in_alone_and_under_vmap(seed, count):
    """So that `core.combine` may split once."""

    def folded(key):
        return torch.stack([random.fold_in(key, i) for i in range(count)] or [key])[:count]

    keys = random.split(random.key(seed), 3)
    for key in keys:
        assert_same(random.split(key, count), folded(key))
    split = torch.func.vmap(lambda key: random.split(key, count))
    assert_same(split(keys), torch.func.vmap(folded)(keys))


def test_vmap_over_fold_in_data():
    folded = torch.func.vmap(lambda data: random.fold_in(KEY, data))(torch.arange(4))
    assert_same(folded, torch.stack([random.fold_in(KEY, data) for data in range(4)]))


@each_draw
def test_draws_under_grad_and_jvp(draw):
    def scaled(x: Tensor, key: Tensor) -> Tensor:
        return (x * draw(key).double()).sum()

    x = torch.tensor(2.0, dtype=torch.float64)
    expected = draw(KEY).double().sum()
    torch.testing.assert_close(torch.func.grad(scaled)(x, KEY), expected)
    torch.testing.assert_close(torch.func.grad(lambda x: scaled(x, KEY))(x), expected)
    tangent = torch.func.jvp(lambda x: scaled(x, KEY), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, expected)


@each_draw
@pytest.mark.parametrize("mode", ["fake", "real"])
def test_traced_draws_are_the_same(draw, mode):
    graph = make_fx(draw, tracing_mode=mode)(random.key(1))
    assert_same(graph(KEY), draw(KEY))
    assert not [node for node in graph.graph.nodes if str(node.target).endswith("_.Tensor")]


def test_fake_keys_draw_fake_numbers():
    with FakeTensorMode() as mode:
        drawn = random.uniform(mode.from_tensor(KEY), (100_000,), torch.bfloat16)
    assert drawn.shape == (100_000,)
    assert drawn.dtype == torch.bfloat16


@each_draw
def test_compiled_draws_are_the_same(draw):
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert_same(compiled(KEY), draw(KEY))


@pytest.mark.slow
def test_draws_compiled_by_inductor_are_the_same():
    # Each is a hundred operations, which take the compiler half a minute.
    names = ("uniform_range", "permutation")

    def draw_all(key: Tensor, step: Tensor) -> list[Tensor]:
        child = random.fold_in(key, step)
        return [DRAWS[name](child) for name in names]

    step = torch.tensor(3)
    compiled = torch.compile(draw_all, fullgraph=True)(KEY, step)
    for actual, expected in zip(compiled, draw_all(KEY, step), strict=True):
        assert_same(actual, expected)


def test_draws_are_on_the_keys_device():
    for name, draw in DRAWS.items():
        assert draw(random.key(0, device="meta")).device.type == "meta", name


def test_a_draw_leaves_its_key_alone():
    key = random.key(3)
    for draw in DRAWS.values():
        draw(key)
    assert_same(key, random.key(3))


@each_draw
def test_wrong_keys_say_how_to_make_one(draw):
    for wrong in (3, torch.zeros(2), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(TypeError, match=r"make one with funcnets\.random\.key\(seed\)"):
            draw(wrong)
    for wrong in (random.split(KEY), KEY[0]):
        with pytest.raises(ValueError, match=r"shape .*make one with"):
            draw(wrong)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random.key(2**63), ValueError, "out of range"),
        (lambda: random.key(0.5), TypeError, "the seed is 0.5, a float; expected an integer"),
        (lambda: random.key("a"), TypeError, "the seed is 'a', a str; expected an integer"),
        (lambda: random.split(KEY, -1), ValueError, "a draw of -1 numbers; expected 0 or more"),
        (lambda: random.permutation(KEY, -1), ValueError, "-1 numbers; expected 0 or more"),
        (lambda: random.uniform(KEY, (-1, -2)), ValueError, "-1 × -2 numbers; expected 0 or more"),
        (lambda: random.fold_in(KEY, -1), ValueError, "0 to 2"),
        (lambda: random.fold_in(KEY, 2**32), ValueError, "0 to 2"),
        (lambda: random.fold_in(KEY, torch.tensor(0.5)), TypeError, "float32"),
        (lambda: random.fold_in(KEY, torch.tensor([1, 2])), ValueError, "vmap"),
        (lambda: random.uniform(KEY, (2,), torch.int32), TypeError, "bfloat16"),
        (lambda: random.normal(KEY, (2,), torch.complex64), TypeError, "bfloat16"),
        (lambda: random.uniform(KEY, (2,), minval=2.0), ValueError, "minval <= maxval"),
        (lambda: random.uniform(KEY, (2,), maxval=math.inf), ValueError, "finite"),
        (lambda: random.uniform(KEY, (2,), minval=math.nan), ValueError, "finite"),
        (lambda: random.bernoulli(KEY, 1.5, (2,)), ValueError, "0 to 1"),
        (lambda: random.bernoulli(KEY, math.nan, (2,)), ValueError, "0 to 1"),
        (lambda: generator._words(KEY, 0, 2**31 + 1), ValueError, "2147483649"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(dtype=st.sampled_from(list(TYPES.values())), value=st.floats(-100.0, 100.0))
@settings(deadline=None, max_examples=100)
def test_rounding_of_numbers_is_torchs(dtype, value):
    if abs(value) < 1e-3:
        value = math.copysign(2.0 ** math.floor(1000 * value), value)
    number = torch.tensor(value, dtype=torch.float64).to(dtype)
    assert generator._rounded_number(value, dtype) == number.item()
    following = torch.nextafter(number, torch.tensor(math.inf, dtype=dtype))
    assert generator._next_number(number.item(), dtype) == following.item()


@given(value=st.floats(-100.0, 100.0, width=32), dtype=st.sampled_from(["float16", "bfloat16"]))
@settings(deadline=None, max_examples=200)
def test_rounding_of_tensors_is_torchs(value, dtype):
    value = torch.tensor(value if abs(value) > 1e-4 else 0.0)
    assert generator._rounded(value, TYPES[dtype]) == value.to(TYPES[dtype]).float()
