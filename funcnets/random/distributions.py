"""Distributions that are made of uniform numbers and bits, as `jax.random` makes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from funcnets.random.generator import bits, permutation, split, uniform

_WORD = 0xFFFFFFFF


def randint(key: Tensor, shape: Sequence[int], minval: int, maxval: int) -> Tensor:
    """Return whole numbers from minval to maxval - 1, of the given shape: int64.

    They are those of `jax.random.randint` in int32, bit for bit, for maxval below `2**31`.  A
    number is the remainder of 64 random bits, up to overflow in 32 bits as in JAX, so in a wide
    range some numbers are slightly more likely than others.

    Raises ValueError unless `-2**31 <= minval < maxval <= 2**31`.

    >>> from funcnets import random
    >>> random.randint(random.key(0), (5,), 0, 10)
    tensor([9, 0, 2, 3, 1])
    """
    if not -(2**31) <= minval < maxval <= 2**31:
        raise ValueError(
            f"randint takes -2**31 <= minval < maxval <= 2**31, got {minval} and {maxval}"
        )
    upper, lower = (bits(half, shape).long() & _WORD for half in split(key))
    span = maxval - minval
    if span == 2**32:
        return lower + minval
    # 2**32 modulo span, by products of words that wrap at 32 bits, as those of XLA do.
    multiplier = (((2**16 % span) ** 2) & _WORD) % span
    offset = (upper % span * multiplier + lower % span) & _WORD
    return offset % span + minval


def exponential(
    key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return exponentially distributed numbers with mean 1, of the given shape and floating dtype.

    They are -log(1 - u) with u uniform in [0, 1), as in `jax.random.exponential`.  Of 400,000
    numbers from JAX's on a CPU, those in float16 and bfloat16 are the same bit for bit, those in
    float32 differ by at most 1 unit in the last place, and those in float64 by 128 (absolute
    2e-14).

    Raises as `uniform`.

    >>> from funcnets import random
    >>> random.exponential(random.key(0), (3,))
    tensor([2.9501, 3.8434, 0.4039])
    """
    u = uniform(key, shape, dtype)
    return -torch.log1p(-u.double()).to(dtype)


def gumbel(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard Gumbel numbers, of the given shape and floating dtype.

    They are -log(-log(u)) with u uniform in (0, 1), as in `jax.random.gumbel`.  Of 400,000 numbers
    from JAX's on a CPU, those in bfloat16 are the same bit for bit, those in float16 differ by at
    most 8 units in the last place, and those in float32 and float64 by an absolute 5e-7 and 2e-15.

    Raises as `uniform`.

    >>> from funcnets import random
    >>> random.gumbel(random.key(0), (3,))
    tensor([ 2.9234,  3.8326, -0.0969])
    """
    u = uniform(key, shape, dtype, torch.finfo(dtype).tiny, 1.0)
    return -(-u.double().log()).to(dtype).double().log().to(dtype)


def categorical(
    key: Tensor, logits: Tensor, axis: int = -1, shape: Sequence[int] | None = None
) -> Tensor:
    """Return class numbers with the probabilities softmax(logits) along `axis`: int64.

    A class is the largest of logits + Gumbel numbers, as in `jax.random.categorical`: the same
    class, unless two sums are within their rounding (for 7 classes in none of 400,000 draws).

    Args:
        key: key of the draw.
        logits: unnormalised log-probabilities, floating, of any shape.
        axis: that of the classes.
        shape: shape of the result, which ends in that of the logits without `axis`; None for this.

    Raises ValueError for another `shape`.

    >>> import torch
    >>> from funcnets import random
    >>> random.categorical(random.key(0), torch.tensor([0.0, 1.0]), shape=(6,))
    tensor([1, 1, 0, 1, 0, 0])
    """
    axis = axis % logits.ndim - logits.ndim
    batch = (*logits.shape[:axis], *logits.shape[logits.ndim + axis + 1 :])
    shape = batch if shape is None else tuple(shape)
    leading = shape[: len(shape) - len(batch)]
    if shape[len(leading) :] != batch:
        raise ValueError(
            f"categorical: shape is {shape}; expected one that ends in {batch}, that of the logits "
            "without the axis of classes"
        )
    noise = gumbel(key, (*leading, *logits.shape), logits.dtype)
    return (noise + logits).argmax(axis)


def choice(
    key: Tensor,
    values: int | Tensor,
    shape: Sequence[int] = (),
    *,
    replace: bool = True,
    p: Tensor | None = None,
) -> Tensor:
    """Return random elements of `values`, or of the numbers 0 to values - 1 if it is a number.

    They are those of `jax.random.choice`: bit for bit without `p`; with it, unless a draw is within
    the rounding of the cumulative probabilities (of 400,000 draws, 305 from 10,000 elements, and
    none from 100).  Without replacement and without `p` they are the first of `permutation(key,
    n)`, and differ from JAX's.

    Args:
        key: key of the draw.
        values: a number n, or a tensor, of which rows are chosen.
        shape: number of draws, in any shape.
        replace: False if no element may be chosen twice.
        p: probabilities (n,), which sum to 1; None for equal ones.

    Raises ValueError for nothing to choose from, more draws than elements without replacement, and
    another shape of `p`.

    >>> from funcnets import random
    >>> sorted(random.choice(random.key(0), 4, (4,), replace=False).tolist())
    [0, 1, 2, 3]
    """
    count = len(values) if isinstance(values, Tensor) else values
    draws = torch.Size(shape).numel()
    if count < 1 or (not replace and draws > count):
        once = "" if replace else ", each at most once"
        raise ValueError(f"choice: can't draw {draws} of {count} elements{once}")
    if p is not None and p.shape != (count,):
        raise ValueError(f"choice: p has shape {tuple(p.shape)}, expected {(count,)}")
    if p is None:
        chosen = randint(key, shape, 0, count) if replace else permutation(key, count)[:draws]
    elif replace:
        borders = p.cumsum(0)
        drawn = borders[-1] * (1 - uniform(key, shape, p.dtype))
        chosen = torch.searchsorted(borders, drawn)
    else:
        chosen = (gumbel(key, (count,), p.dtype) + p.log()).topk(draws).indices
    chosen = chosen.reshape(tuple(shape))
    return values[chosen] if isinstance(values, Tensor) else chosen
