"""Comparison of trees of tensors, and the error that says where they differ."""

from typing import Any

import torch
from torch import Tensor

from funcnets import tree


class Difference(AssertionError):
    """Two results that should be equal and aren't.

    Attributes:
        quantity: name of the result, such as "gradients in training".
        leaf: dotted name of the leaf that differs most.
        apart: largest difference between two elements, or None where names, shapes or dtypes
            differ.
        allowed: largest difference that is allowed.
    """

    def __init__(
        self,
        problem: str,
        *,
        quantity: str = "",
        leaf: str = "",
        apart: float | None = None,
        allowed: float | None = None,
        where: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem, self.quantity, self.leaf, self.where = problem, quantity, leaf, where
        self.apart, self.allowed = apart, allowed

    def __str__(self) -> str:
        return "".join(
            part + ends
            for part, ends in ((self.quantity, ": "), (self.problem, ""), (self.where, ""))
            if part
        )


def assert_close(
    actual: Any, expected: Any, tolerance: float = 1e-9, quantity: str = "", *, names: str = ""
) -> None:
    """Raise Difference unless two trees have the same names and close tensors.

    Every floating tensor has to be within `tolerance` of the largest value of all of them, and the
    others have to be equal.  A gradient that is 0, as that of a bias before batch norm, is computed
    as a difference of larger numbers, so its own size says nothing of its rounding.

    Args:
        actual, expected: trees of tensors.
        tolerance: largest difference, as a part of the largest expected value; 0 for equal bits.
        quantity: name of the trees in the message.
        names: the two sides in the message, such as "layer, module".

    >>> import torch
    >>> from funcnets import testing
    >>> testing.assert_close({"bias": torch.ones(3)}, {"bias": torch.tensor([1.0, 1.5, 1.0])})
    Traceback (most recent call last):
    ...
    funcnets.testing._difference.Difference: `bias` differs by 5.0e-01 at [1]: actual 1, expected \
1.5 (allowed 1.5e-09)
    """
    ours, theirs = tree.flatten_named(actual), tree.flatten_named(expected)
    if ours.keys() != theirs.keys():
        lacking, more = (sorted(a.keys() - b.keys()) for a, b in ((theirs, ours), (ours, theirs)))
        raise Difference(f"leaves lack {lacking} and have besides {more}", quantity=quantity)
    for name, value in ours.items():
        _check_kind(quantity, name, value, theirs[name])
    largest = max([_largest(leaf) for leaf in theirs.values() if leaf.is_floating_point()] or [0.0])
    allowed = {
        name: tolerance * (largest or 1.0) if leaf.is_floating_point() else 0.0
        for name, leaf in ours.items()
    }
    apart = {name: _apart(value, theirs[name]) for name, value in ours.items() if value.numel()}
    # Written so that NaN fails.
    worst = [name for name, each in apart.items() if not float(each.max()) <= allowed[name]]
    if worst:
        leaf = max(worst, key=lambda name: float(apart[name].max().nan_to_num(torch.inf)))
        sides = ours[leaf], theirs[leaf], apart[leaf]
        raise _difference(quantity, leaf, *sides, allowed[leaf], names)


def _check_kind(quantity: str, name: str, value: Tensor, other: Tensor) -> None:
    for what in ("shape", "dtype"):
        a, b = getattr(value, what), getattr(other, what)
        if a != b:
            a, b = (tuple(each) if what == "shape" else each for each in (a, b))
            problem = f"{name and f'`{name}` '}has {what} {a}, expected {b}"
            raise Difference(problem, quantity=quantity, leaf=name)


def _largest(value: Tensor) -> float:
    return float(value.detach().abs().max()) if value.numel() else 0.0


def _apart(value: Tensor, other: Tensor) -> Tensor:
    if value.is_floating_point():
        return (value.detach() - other.detach()).abs()
    # Differences of integers would wrap around, and large ones are rounded in float64.
    difference = (value.double() - other.double()).abs().clamp(min=1.0)
    return torch.where(value != other, difference, 0.0)


def _difference(
    quantity: str,
    leaf: str,
    value: Tensor,
    other: Tensor,
    apart: Tensor,
    allowed: float,
    names: str,
) -> Difference:
    flat = int(apart.flatten().nan_to_num(torch.inf).argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), apart.shape)]
    one, two = (side.strip() for side in (names or "actual, expected").split(","))
    difference = float(apart.flatten()[flat])
    ours, theirs = (float(each.detach().flatten()[flat]) for each in (value, other))
    problem = (
        f"{leaf and f'`{leaf}` '}differs by {difference:.1e} at {index}: {one} {ours:.8g}, "
        f"{two} {theirs:.8g} (allowed {allowed:.1e})"
    )
    return Difference(problem, quantity=quantity, leaf=leaf, apart=difference, allowed=allowed)
