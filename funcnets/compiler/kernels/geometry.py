"""Sides, stride and padding of a convolution."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """Heights and widths of a convolution's input, kernel and output, its stride and padding."""

    input: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def tap(self, output: int, pixel: int) -> int | None:
        """Return the index of the tap by which an output pixel reads an input pixel, or None."""
        rows = [divmod(output, self.output[1]), divmod(pixel, self.input[1])]
        y, x = (
            rows[1][axis] + self.padding[axis] - rows[0][axis] * self.stride[axis]
            for axis in (0, 1)
        )
        inside = 0 <= y < self.kernel[0] and 0 <= x < self.kernel[1]
        return y * self.kernel[1] + x if inside else None

    def taps(self) -> list[int | None]:
        """Return the tap of each (output pixel, input pixel), input pixels varying fastest."""
        outputs, pixels = area(self.output), area(self.input)
        return [self.tap(o, p) for o in range(outputs) for p in range(pixels)]


def area(side: Sequence[int]) -> int:
    """Return height × width."""
    return side[0] * side[1]


def geometry(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Geometry:
    """Return the geometry of a convolution without dilation or groups."""
    sides, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    output = tuple(
        (side + 2 * p - k) // s + 1
        for side, k, s, p in zip(sides, kernel, stride, padding, strict=True)
    )
    return Geometry(sides, kernel, output, tuple(stride), tuple(padding))
