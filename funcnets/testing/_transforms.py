"""A function against itself: compiled, mapped, differentiated, and in another dtype."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from funcnets import tree
from funcnets.compiler import jit
from funcnets.testing._difference import assert_close
from funcnets.testing._values import random_like

# Of finite differences in float64: their error is about STEP² + 1e-16 / STEP.
STEP = 1e-6
MEMBERS = 3
CHECKS = ("jit", "vmap", "jvp", "vjp", "float32")


def assert_transforms_agree(
    function: Callable[..., Any],
    *args: Any,
    checks: Sequence[str] = CHECKS,
    backends: Sequence[Any] = ("graph", "native"),
    tolerance: float = 1e-9,
    float32_tolerance: float = 1e-3,
    seed: int = 0,
) -> None:
    """Raise Difference unless a pure function gives the same under each transform.

    The checks are, by name:

    * jit: `funcnets.jit` on each back end against the function as it is;
    * vmap: `torch.func.vmap` over three inputs near the one given, against a loop.  All have the
      same integers, keys among them, and draw the same random numbers;
    * jvp: forward-mode derivatives against central differences, so the function must have
      derivatives near its arguments (tolerance 1e-5);
    * vjp: reverse mode is the transpose of forward mode;
    * float32: arguments rounded to float32 against float64.

    Args:
        function: takes trees of tensors and returns one.
        args: its arguments, in float64.
        checks: names of the checks to make.
        backends: back ends of `jit`.
        tolerance, float32_tolerance: largest difference, as a part of the largest value.
        seed: of directions and neighbours.

    Raises ValueError for an unknown check.

    >>> import torch
    >>> from funcnets import testing
    >>> testing.assert_transforms_agree(torch.tanh, torch.ones(2, dtype=torch.float64))
    """
    if unknown := [name for name in checks if name not in CHECKS]:
        raise ValueError(f"checks: {unknown[0]!r} is not one of {', '.join(CHECKS)}")
    expected = function(*args)
    if "jit" in checks:
        for backend in backends:
            actual = jit(function, backend=backend)(*args)
            assert_close(actual, expected, tolerance, f"jit on {backend}", names="jit, eager")
    if "vmap" in checks:
        _check_vmap(function, args, tolerance, seed)
    if "jvp" in checks:
        _check_jvp(function, args, seed)
    if "vjp" in checks:
        _check_vjp(function, args, tolerance, seed)
    if "float32" in checks:
        actual = _cast(function(*_cast(args, torch.float32)), torch.float64)
        assert_close(actual, expected, float32_tolerance, "float32", names="float32, float64")


def _is_real(leaf: Tensor) -> bool:
    return leaf.is_floating_point()


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree.map(lambda leaf: leaf.to(dtype) if _is_real(leaf) else leaf, values)


def _check_vmap(
    function: Callable[..., Any], args: Sequence[Any], tolerance: float, seed: int
) -> None:
    def near(leaf: Tensor, noise: Tensor) -> Tensor:
        return leaf * (noise / 8).exp() if _is_real(leaf) else leaf

    neighbours = [tree.map(near, args, random_like(args, seed + i)) for i in range(MEMBERS)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *neighbours)
    mapped = torch.func.vmap(function, randomness="same")(*stacked)
    looped = tree.map(
        lambda *leaves: torch.stack(leaves), *(function(*each) for each in neighbours)
    )
    assert_close(mapped, looped, tolerance, "vmap", names="vmap, loop")


def _of_real_leaves(
    function: Callable[..., Any], args: Sequence[Any]
) -> tuple[Callable[..., dict[str, Tensor]], list[Tensor]]:
    """Return the function of the floating leaves of its arguments, which gives such leaves."""
    leaves, structure = tree.flatten(tuple(args))
    real = [i for i, leaf in enumerate(leaves) if _is_real(leaf)]

    def of_leaves(*given: Tensor) -> dict[str, Tensor]:
        filled = list(leaves)
        for i, leaf in zip(real, given, strict=True):
            filled[i] = leaf
        named = tree.flatten_named(function(*tree.unflatten(filled, structure)))
        return {name: leaf for name, leaf in named.items() if _is_real(leaf)}

    return of_leaves, [leaves[i] for i in real]


def _check_jvp(function: Callable[..., Any], args: Sequence[Any], seed: int) -> None:
    of_leaves, leaves = _of_real_leaves(function, args)
    tangents = random_like(leaves, seed)
    actual: Any = torch.func.jvp(of_leaves, tuple(leaves), tuple(tangents))[1]
    sides = [
        of_leaves(*(leaf + sign * STEP * t for leaf, t in zip(leaves, tangents, strict=True)))
        for sign in (1, -1)
    ]
    expected = {name: (sides[0][name] - sides[1][name]) / (2 * STEP) for name in actual}
    assert_close(actual, expected, 1e-5, "jvp", names="jvp, finite differences")


def _check_vjp(
    function: Callable[..., Any], args: Sequence[Any], tolerance: float, seed: int
) -> None:
    of_leaves, leaves = _of_real_leaves(function, args)
    tangents = random_like(leaves, seed)
    forward = torch.func.jvp(of_leaves, tuple(leaves), tuple(tangents))[1]
    cotangents = random_like(forward, seed + 1)
    pull_back: Any = torch.func.vjp(of_leaves, *leaves)[1]
    backward = pull_back(cotangents)
    actual = {"product": _inner(backward, tangents)}
    expected = {"product": _inner(cotangents, forward)}
    assert_close(actual, expected, tolerance, "vjp", names="vjp, jvp")


def _inner(left: Any, right: Any) -> Tensor:
    pairs = zip(tree.leaves(left), tree.leaves(right), strict=True)
    return torch.stack([(a * b).sum() for a, b in pairs]).sum()
