"""Random numbers as pure functions of a key, bit for bit those of `jax.random`.

Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) takes
only adds, xors and rotates, which int32 tensors do with wrap-around: so a key gives the same
numbers on every device, eager, compiled, traced or under a transform.  Of float64 the last digit
may differ, of normal numbers and in a range whose width is no power of two.  (16-bit numbers under
`vmap` need a torch newer than 2.11, which can't reinterpret bits there.)
"""

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = [
    "bernoulli",
    "bits",
    "fold_in",
    "key",
    "normal",
    "permutation",
    "split",
    "threefry2x32",
    "truncated_normal",
    "uniform",
]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

# Random bits that JAX spends on a number of each type, and how many of them, the upper ones,
# become its mantissa.
_RANDOM_BITS = {torch.float64: 64, torch.float32: 32, torch.float16: 16, torch.bfloat16: 8}
_MANTISSA_BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}

# A hundred operations pass over the numbers one after the other: in pieces of this size they
# stay in the processor's cache, and an operation takes longer than its call (2,000,000 numbers, in
# milliseconds on two threads and on one: 33 and 60, by pieces of 2**15 92 and 98, of 2**20 84 and
# 94).  Elsewhere the piece bounds the memory.
_PIECE_ON_CPU = 2**18
_PIECE_ELSEWHERE = 2**24


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """The key of a seed: int32, shape (2,), the upper and the lower word of the seed.

    `seed` is a 64-bit integer, -2**63 to 2**63 - 1, in two's complement.  This is
    `jax.random.key` with `jax_enable_x64`; without it JAX drops the upper word, so the two
    agree for seeds from 0 to 2**32 - 1.  Raises TypeError for what is no integer, ValueError for a
    seed out of range.
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
    """`count` independent keys from one: int32, shape (count, 2), as `jax.random.split`.

    Raises ValueError for a negative count.
    """
    _check_key(key)
    return torch.stack(_words(key, 0, count), dim=-1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """The key of the child number `data` of `key`: int32, shape (2,), as `jax.random.fold_in`.

    `data` is an integer from 0 to 2**32 - 1, or an integer tensor of no dimensions, of which
    the lower 32 bits count.  Raises TypeError or ValueError for any other.
    """
    _check_key(key)
    if isinstance(data, Tensor):
        if data.dtype.is_floating_point or data.dtype.is_complex or data.dtype == torch.bool:
            raise TypeError(f"fold_in takes an integer, got a tensor of {data.dtype}")
        if data.ndim:
            raise ValueError(
                f"fold_in takes one integer, got a tensor of shape {tuple(data.shape)}: "
                "use torch.func.vmap for many"
            )
        word: int | Tensor = data.to(device=key.device, dtype=torch.int32)
    else:
        if not 0 <= data < 2**32:
            raise ValueError(f"fold_in takes an integer from 0 to 2**32 - 1, got {data}")
        word = _signed(data)
    return torch.stack(threefry2x32(key, 0, word))


def bits(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """32 random bits a position: int32, the two's complement of `jax.random.bits`."""
    return _draw(key, shape, torch.int32, torch.bitwise_xor)


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
) -> Tensor:
    """Uniform in [minval, maxval), of the given shape and floating type, as `jax.random.uniform`.

    float32, float16 and bfloat16 are JAX's bits for every range, float64 for [0, 1) and else
    up to its last rounding.  Rounding may give `maxval` itself.  Raises TypeError for another
    dtype, ValueError for a range that is not finite or runs backwards, or a negative size.
    """
    finish = _uniform_from_words(dtype, minval, maxval)
    return _draw(key, shape, dtype, lambda *words: finish(*words).to(dtype))


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal with mean 0 and variance 1, by JAX's rule and to 1e-6 its numbers.

    sqrt(2) * erfinv(u), with u uniform between -1, left out, and 1.
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
    """Normal with mean 0 and variance 1 before it is cut to (lower, upper), by JAX's rule.

    sqrt(2) * erfinv(u), with u uniform between erf(lower / sqrt(2)) and erf(upper / sqrt(2)).
    Raises TypeError for a dtype as `uniform`, ValueError unless lower < upper, both finite.
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
    """True with probability `p`: bool, of the given shape, as `jax.random.bernoulli`.

    `p` is a number, or a floating tensor that broadcasts to `shape`, and a position is True
    where a uniform number of p's type (float32 for a number) is less than p.  Raises
    ValueError for a number outside [0, 1].
    """
    if isinstance(p, Tensor):
        return uniform(key, shape, p.dtype) < p
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"bernoulli takes a probability from 0 to 1, got {p}")
    return uniform(key, shape) < p


def permutation(key: Tensor, n: int) -> Tensor:
    """The numbers 0 to n - 1 in random order: int64, shape (n,).

    A stable sort by 64 random bits a position: every order is equally likely, but for the
    chance of n**2 / 2**65 that two positions draw the same bits and keep their order.  The
    rule is this library's own; `jax.random.permutation` gives other orders.
    """
    _check_key(key)
    upper, lower = _words(key, 0, n)
    return torch.argsort((upper.long() << 32) | (lower.long() & 0xFFFFFFFF), stable=True)


def threefry2x32(key: Tensor, upper: Tensor | int, lower: Tensor | int) -> tuple[Tensor, Tensor]:
    """The two words that the 20 rounds of Threefry-2x32 make of a counter's two words.

    `key` is int32 of shape (2,); counters and results are int32 and broadcast together.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    first, second = schedule[0] + upper, schedule[1] + lower
    if key.is_meta:  # shapes alone are asked for: the rounds would be 150 operations for nothing
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
    # `>>` repeats the sign: the mask keeps only the bits that went round.
    return (word << distance) | ((word >> (32 - distance)) & ((1 << distance) - 1))


def _signed(word: int) -> int:
    """The int32 with the lower 32 bits of `word`."""
    return ((word + 2**31) & 0xFFFFFFFF) - 2**31


def _words(key: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Two random words for each of `count` positions from `start`, a multiple of the piece.

    A position is the counter, so that any piece can be drawn alone.
    """
    _check_sizes(count)
    if count > 2**31:
        raise ValueError(
            f"{count} numbers in one piece are too many, 2**31 is the limit: draw them outside "
            "of transforms, torch.compile and jit, or under one key for each part"
        )
    lower = torch.arange(count, dtype=torch.int32, device=key.device) + _signed(start)
    return threefry2x32(key, _signed(start >> 32), lower)


def _draw(
    key: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    finish: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`finish` of the random words of every position of `shape`, in row-major order."""
    _check_key(key)
    _check_sizes(*shape)
    size = math.prod(shape)
    if not _is_plain(key):
        return finish(*_words(key, 0, size)).reshape(shape)
    piece = _PIECE_ON_CPU if key.device.type == "cpu" else _PIECE_ELSEWHERE
    drawn = torch.empty(size, dtype=dtype, device=key.device)
    for start in range(0, size, piece):
        stop = min(start + piece, size)
        drawn[start:stop] = finish(*_words(key, start, stop - start))
    return drawn.reshape(shape)


def _is_plain(key: Tensor) -> bool:
    """Whether nothing traces or transforms what is done with `key`.

    Tracers and transforms have to see one pure operation on the whole, no loop that writes.
    """
    return (
        not torch.compiler.is_compiling()
        and type(key) is Tensor
        and torch._C._functorch.peek_interpreter_stack() is None
        and _get_current_dispatch_mode() is None
    )


def _mantissa(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """The mantissa of a number of `dtype` from its random words, as an integer tensor."""
    if dtype == torch.float64:
        return ((first.long() << 20) & (2**52 - 1)) | ((second >> 12) & (2**20 - 1))
    unused = _RANDOM_BITS[dtype] - _MANTISSA_BITS[dtype]
    return ((first ^ second) >> unused) & (2 ** _MANTISSA_BITS[dtype] - 1)


def _uniform_from_words(
    dtype: torch.dtype, minval: float, maxval: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function from random words to uniform numbers.

    Its result holds numbers of `dtype`, the 16-bit ones as float32.
    """
    _check_dtype(dtype)
    if not -math.inf < minval <= maxval < math.inf:
        raise ValueError(f"uniform takes minval <= maxval, both finite, got {minval} and {maxval}")
    minval, maxval = _rounded_number(minval, dtype), _rounded_number(maxval, dtype)
    step = _rounded_number(maxval - minval, dtype) * 2.0 ** -_MANTISSA_BITS[dtype]
    # XLA fuses multiplication and addition in float32: in float64 the product of two float32
    # numbers is exact, so that the sum alone is rounded, whether or not a compiler here fuses them
    # too.  Numbers of float64 have no wider type: unless the step is a power of two, their product
    # is rounded too, but where a compiler fuses.
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
    """The function from random words to sqrt(2) * erfinv(u), u uniform from first to last."""
    uniform_from_words = _uniform_from_words(dtype, first, last)
    root = _rounded_number(math.sqrt(2.0), dtype)

    def finish(upper: Tensor, lower: Tensor) -> Tensor:
        # In float32 the implementations of erfinv differ in their last digits; float64 has
        # digits to spare, and the rounded results agree.
        quantile = torch.erfinv(uniform_from_words(upper, lower).double())
        return _rounded(_rounded(quantile, dtype) * root, dtype)

    return finish


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` rounded to the nearest number of `dtype`, the 16-bit ones kept in float32.

    To 16 bits on the integers of the float32: compilers drop a cast there and back, and with
    it the rounding.
    """
    if dtype.itemsize > 2:
        return value.to(dtype)
    dropped = 23 - _MANTISSA_BITS[dtype]
    word = value.float().view(torch.int32)
    to_even = (word >> dropped) & 1
    word = (word + (2 ** (dropped - 1) - 1) + to_even) >> dropped
    return (word << dropped).view(torch.float32)


def _rounded_number(value: float, dtype: torch.dtype) -> float:
    """`value` rounded to the digits of `dtype`."""
    mantissa, exponent = math.frexp(value)
    digits = _MANTISSA_BITS[dtype] + 1
    return math.ldexp(round(math.ldexp(mantissa, digits)), exponent - digits)


def _next_number(value: float, dtype: torch.dtype) -> float:
    """The number of `dtype` that follows `value`, one of them."""
    if value == 0.0:
        return torch.finfo(dtype).tiny
    mantissa, exponent = math.frexp(value)
    # From a power of two towards zero, numbers lie twice as close.
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
            "funcnets.random.key(seed), and use torch.func.vmap over many"
        )


def _check_sizes(*sizes: int) -> None:
    if any(size < 0 for size in sizes):
        raise ValueError(f"a draw of {' × '.join(map(str, sizes))} numbers; expected 0 or more")


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _MANTISSA_BITS:
        names = ", ".join(str(name) for name in _MANTISSA_BITS)
        raise TypeError(f"random numbers of {dtype} are not available: take one of {names}")
