"""Keys, and the numbers that the generator Threefry-2x32 gives for them; see `funcnets.random`."""

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from funcnets._torch import current_dispatch_mode, functorch

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

# Random bits that JAX draws for a number of each type; the upper _MANTISSA_BITS of them become its
# mantissa.
_RANDOM_BITS = {torch.float64: 64, torch.float32: 32, torch.float16: 16, torch.bfloat16: 8}
_MANTISSA_BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}

# Numbers drawn at a time.  The generator makes about a hundred passes over them: on a CPU a chunk
# stays in cache for all passes, and is long enough to hide the cost of calling an operation
# (2,000,000 numbers on two threads: 33 ms, with chunks of 2**15 92 ms, of 2**20 84 ms).  On other
# devices the chunk bounds the memory.
_CHUNK_ON_CPU = 2**18
_CHUNK_ELSEWHERE = 2**24


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """Return the key of a seed: int32, shape (2,), the upper and the lower 32 bits of the seed.

    `seed` is an integer from `-2**63` to `2**63 - 1`.  The key is that of `jax.random.key` with
    `jax_enable_x64`; without it JAX drops the upper 32 bits, so the two agree for seeds from 0 to
    `2**32 - 1`.

    Raises TypeError if the seed is not an integer, ValueError if it is out of range.

    >>> from funcnets import random
    >>> random.key(42)
    tensor([ 0, 42], dtype=torch.int32)
    """
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"the seed is {seed!r}, a {type(seed).__name__}; expected an integer"
        ) from None
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"the seed {seed} is out of range: give one from -2**63 to 2**63 - 1")
    words = [_signed(seed >> 32), _signed(seed)]
    return torch.tensor(words, dtype=torch.int32, device=device)


def split(key: Tensor, count: int = 2) -> Tensor:
    """Return `count` independent keys from one: int32, shape (count, 2), as `jax.random.split`.

    Don't use `key` itself again after this.  Raises ValueError for a negative count.

    >>> from funcnets import random
    >>> init_key, train_key = random.split(random.key(42))
    >>> init_key
    tensor([1832780943,  270669613], dtype=torch.int32)
    """
    _check_key(key)
    return torch.stack(_words(key, 0, count), dim=-1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Return the key number `data` of those derived from `key`: int32, (2,).

    It is that of `jax.random.fold_in`.  `data` is an integer from 0 to `2**32 - 1`, or a 0-d
    integer tensor, whose lower 32 bits are used.  Raises TypeError or ValueError for others.

    >>> from funcnets import random
    >>> step_keys = [random.fold_in(random.key(0), step) for step in range(3)]
    """
    _check_key(key)
    if isinstance(data, Tensor):
        if data.dtype.is_floating_point or data.dtype.is_complex or data.dtype == torch.bool:
            raise TypeError(f"fold_in takes an integer, got a tensor of {data.dtype}")
        if data.ndim:
            raise ValueError(
                f"fold_in takes one integer, got a tensor of shape {tuple(data.shape)}: "
                "use torch.func.vmap for several"
            )
        word: int | Tensor = data.to(device=key.device, dtype=torch.int32)
    else:
        if not 0 <= data < 2**32:
            raise ValueError(f"fold_in takes an integer from 0 to 2**32 - 1, got {data}")
        word = _signed(data)
    return torch.stack(threefry2x32(key, 0, word))


def bits(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Return 32 random bits for each element of `shape`: int32, the bits of `jax.random.bits`."""
    return _draw(key, shape, torch.int32, torch.bitwise_xor)


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
) -> Tensor:
    """Return numbers uniform in [minval, maxval), of the given shape and floating dtype.

    They equal those of `jax.random.uniform` bit for bit, in float64 outside of [0, 1) up to the
    last rounding.  Rounding may give `maxval` itself.

    Raises TypeError for another dtype, ValueError for a range that is not finite or has
    minval > maxval, or for a negative size.

    >>> from funcnets import random
    >>> random.uniform(random.key(42), (4,))
    tensor([0.4887, 0.6798, 0.6163, 0.5610])
    """
    finish = _uniform_from_words(dtype, minval, maxval)
    return _draw(key, shape, dtype, lambda *words: finish(*words).to(dtype))


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers with mean 0 and variance 1, of the given shape and floating dtype.

    They are √2 · erfinv(u) with u uniform in (-1, 1), as in `jax.random.normal`, up to the rounding
    of erfinv.  Measured over 200,000 numbers: float32 differs by at most 5 units in the last place
    (relative 4e-7), float64 by a relative 2e-12, float16 in the last place of one in a thousand,
    and bfloat16 not at all.

    Raises TypeError for another dtype, ValueError for a negative size.

    >>> from funcnets import random
    >>> random.normal(random.key(0), (3,))
    tensor([ 1.6226,  2.0253, -0.4336])
    """
    _check_dtype(dtype)
    finish = _normal_from_words(dtype, _next_number(-1.0, dtype), 1.0)
    return _draw(key, shape, dtype, lambda *words: finish(*words).to(dtype))


def truncated_normal(
    key: Tensor,
    lower: float,
    upper: float,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return standard normal numbers under the condition that they lie in (lower, upper).

    `shape` is that of the result.  They are √2 · erfinv(u) with u uniform between erf(lower / √2)
    and erf(upper / √2), as in `jax.random.truncated_normal`.  Of 400,000 numbers from JAX's on a
    CPU, those in bfloat16 are the same bit for bit, those in float16 differ by at most 1 unit in
    the last place, those in float32 by 5 (absolute 8e-7), and those in float64 by an absolute
    2e-14.

    Raises TypeError for another dtype than those of `uniform`, ValueError unless lower < upper,
    both finite.
    """
    _check_dtype(dtype)
    if not -math.inf < lower < upper < math.inf:
        raise ValueError(
            f"truncated_normal takes lower < upper, both finite, got {lower} and {upper}"
        )
    first, last = math.erf(lower / math.sqrt(2.0)), math.erf(upper / math.sqrt(2.0))
    finish = _normal_from_words(dtype, first, last)
    least = _next_number(_rounded_number(lower, dtype), dtype)
    most = -_next_number(_rounded_number(-upper, dtype), dtype)
    return _draw(key, shape, dtype, lambda *words: finish(*words).clamp(least, most).to(dtype))


def bernoulli(key: Tensor, p: float | Tensor, shape: Sequence[int]) -> Tensor:
    """Return bools of the given shape, True with probability `p`, as `jax.random.bernoulli`.

    `p` is a number, or a floating tensor that broadcasts to `shape`.  An element is True where a
    uniform number of p's dtype (float32 for a number) is less than p.

    Raises ValueError for a number outside [0, 1].
    """
    if isinstance(p, Tensor):
        return uniform(key, shape, p.dtype) < p
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"bernoulli takes a probability from 0 to 1, got {p}")
    return uniform(key, shape) < p


def permutation(key: Tensor, n: int) -> Tensor:
    """Return the numbers 0 to n - 1 in random order: int64, shape (n,).

    It is a stable sort by 64 random bits for each number.  Every order is equally likely, except
    that two numbers with equal bits (probability about n² / 2⁶⁵) keep their order.  Orders differ
    from those of `jax.random.permutation`.

    >>> from funcnets import random
    >>> sorted(random.permutation(random.key(0), 4).tolist())
    [0, 1, 2, 3]
    """
    _check_key(key)
    upper, lower = _words(key, 0, n)
    return torch.argsort((upper.long() << 32) | (lower.long() & 0xFFFFFFFF), stable=True)


def threefry2x32(key: Tensor, upper: Tensor | int, lower: Tensor | int) -> tuple[Tensor, Tensor]:
    """Return the 20 rounds of Threefry-2x32 on a counter: two words of 32 bits.

    `key` is int32 of shape (2,); `upper` and `lower`, the two words of the counter, and the results
    are int32, and broadcast together.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    first, second = schedule[0] + upper, schedule[1] + lower
    if key.is_meta:  # only the shape is needed: skip the 150 operations of the rounds
        shape_only = first + second
        return shape_only, shape_only
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            first = first + second
            second = _rotate_left(second, distance) ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + (schedule[(group + 2) % 3] + (group + 1))
    return first, second


def _rotate_left(word: Tensor, distance: int) -> Tensor:
    # `>>` repeats the sign bit; the mask keeps only the rotated bits.
    return (word << distance) | ((word >> (32 - distance)) & ((1 << distance) - 1))


def _signed(word: int) -> int:
    """Return the lower 32 bits of `word` as an int32 in two's complement."""
    return ((word + 2**31) & 0xFFFFFFFF) - 2**31


def _words(key: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Return two random words for each of the elements `start` to `start + count - 1`.

    The index of an element is its counter, so any chunk can be drawn alone.
    """
    _check_sizes(count)
    if count > 2**31:
        raise ValueError(
            f"{count} numbers at once are too many, 2**31 is the limit: draw them outside of "
            "transforms, torch.compile and jit, or in parts with a key each"
        )
    lower = torch.arange(count, dtype=torch.int32, device=key.device) + _signed(start)
    return threefry2x32(key, _signed(start >> 32), lower)


def _draw(
    key: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    finish: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return `finish(first, second)` of the random words of every element, in row-major order."""
    _check_key(key)
    _check_sizes(*shape)
    size = math.prod(shape)
    if not _is_eager(key):
        return finish(*_words(key, 0, size)).reshape(shape)
    chunk = _CHUNK_ON_CPU if key.device.type == "cpu" else _CHUNK_ELSEWHERE
    drawn = torch.empty(size, dtype=dtype, device=key.device)
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        drawn[start:stop] = finish(*_words(key, start, stop - start))
    return drawn.reshape(shape)


def _is_eager(key: Tensor) -> bool:
    """Return True if no tracer and no transform sees operations on `key`.

    These must see one pure computation of all numbers instead of a loop that writes chunks.
    """
    return (
        not torch.compiler.is_compiling()
        and type(key) is Tensor
        and functorch.peek_interpreter_stack() is None
        and current_dispatch_mode() is None
    )


def _mantissa(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mantissa of a number of `dtype` from its random words, as an integer tensor."""
    if dtype == torch.float64:
        return ((first.long() << 20) & (2**52 - 1)) | ((second >> 12) & (2**20 - 1))
    unused = _RANDOM_BITS[dtype] - _MANTISSA_BITS[dtype]
    return ((first ^ second) >> unused) & ((1 << _MANTISSA_BITS[dtype]) - 1)


def _uniform_from_words(
    dtype: torch.dtype, minval: float, maxval: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from random words to uniform numbers.

    Its results are numbers of `dtype`, stored as float32 if this has 16 bits.
    """
    _check_dtype(dtype)
    if not -math.inf < minval <= maxval < math.inf:
        raise ValueError(f"uniform takes minval <= maxval, both finite, got {minval} and {maxval}")
    minval, maxval = _rounded_number(minval, dtype), _rounded_number(maxval, dtype)
    step = _rounded_number(maxval - minval, dtype) * 2.0 ** -_MANTISSA_BITS[dtype]
    # XLA computes scaled * step + minval in float32 by a fused multiply-add, which rounds once.  In
    # float64 the product of two float32 numbers is exact, so only the sum is rounded here as well,
    # fused or not.  For float64 there is no wider type: unless the step is a power of two, the
    # product is rounded where no compiler fuses, and the last digit may differ.
    fused = dtype == torch.float32 and minval != 0.0
    work_dtype = torch.float64 if fused or dtype == torch.float64 else torch.float32

    def finish(first: Tensor, second: Tensor) -> Tensor:
        scaled = _mantissa(first, second, dtype).to(work_dtype) * step
        if minval == 0.0:
            return _rounded(scaled, dtype)
        if dtype.itemsize == 2:
            scaled = _rounded(scaled, dtype)
        return _rounded(scaled + minval, dtype)

    return finish


def _normal_from_words(
    dtype: torch.dtype, first: float, last: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from random words to √2 · erfinv(u), u uniform in (first, last)."""
    uniform_from_words = _uniform_from_words(dtype, first, last)
    root = _rounded_number(math.sqrt(2.0), dtype)

    def finish(upper: Tensor, lower: Tensor) -> Tensor:
        quantile = _erfinv(uniform_from_words(upper, lower), dtype)
        return _rounded(_rounded(quantile, dtype) * root, dtype)

    return finish


def _erfinv(u: Tensor, dtype: torch.dtype) -> Tensor:
    """Return erfinv(u) in float64, of numbers of `dtype`, as XLA's approximation gives it.

    In float32 erfinv differs between devices in its last digits.  In float64 it differs in digits
    that rounding to `dtype` drops.
    """
    if dtype != torch.float32:
        return torch.erfinv(u.double())
    # XLA uses the polynomial in log(1 - u²) of Giles, "Approximating the erfinv function", 2010,
    # and rounds u² to float32, which in the tails moves the result by up to a relative 6e-6.  So
    # this is the exact function of the root of the rounded u²; the bound keeps 0 / 0 away.
    root = (u * u).double().sqrt().clamp(min=2.0**-60)
    return torch.erfinv(root) / root * u


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `value` rounded to the nearest number of `dtype`, as float32 if this has 16 bits.

    For 16 bits it rounds the bits of the float32 as an integer, because compilers remove a cast to
    16 bits and back.
    """
    if dtype.itemsize > 2:
        return value.to(dtype)
    dropped = 23 - _MANTISSA_BITS[dtype]
    word = value.float().view(torch.int32)
    to_even = (word >> dropped) & 1
    word = (word + ((1 << (dropped - 1)) - 1) + to_even) >> dropped
    return (word << dropped).view(torch.float32)


def _rounded_number(value: float, dtype: torch.dtype) -> float:
    """Return `value` rounded to the digits of `dtype`."""
    mantissa, exponent = math.frexp(value)
    digits = _MANTISSA_BITS[dtype] + 1
    return math.ldexp(round(math.ldexp(mantissa, digits)), exponent - digits)


def _next_number(value: float, dtype: torch.dtype) -> float:
    """Return the next larger number of `dtype` after `value`, itself a number of `dtype`."""
    if value == 0.0:
        return torch.finfo(dtype).tiny
    mantissa, exponent = math.frexp(value)
    # Numbers between a negative power of two and zero are half as far apart.
    exponent -= mantissa == -0.5
    return value + math.ldexp(1.0, exponent - _MANTISSA_BITS[dtype] - 1)


def _check_key(key: Tensor) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int32:
        given = str(key.dtype) if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(
            f"a key is an int32 tensor of shape (2,), got {given}: "
            "make one with funcnets.random.key(seed)"
        )
    if key.shape != (2,):
        raise ValueError(
            f"a key is an int32 tensor of shape (2,), got shape {tuple(key.shape)}: make one with "
            "funcnets.random.key(seed), and use torch.func.vmap over several"
        )


def _check_sizes(*sizes: int) -> None:
    if any(size < 0 for size in sizes):
        raise ValueError(f"a draw of {' × '.join(map(str, sizes))} numbers; expected 0 or more")


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _MANTISSA_BITS:
        names = ", ".join(str(name) for name in _MANTISSA_BITS)
        raise TypeError(f"random numbers of {dtype} are not available: use one of {names}")
