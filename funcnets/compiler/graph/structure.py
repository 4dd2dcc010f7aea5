"""Trees without their tensors, so that a graph can take and give flat lists of tensors."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from funcnets import tree


class Structure(NamedTuple):
    """A tree without its tensors; its other leaves are None.  Equal ones are interchangeable."""

    spec: tree.Structure
    places: tuple[int, ...]  # positions of the tensors among the leaves

    def fill(self, tensors: Iterable[Tensor]) -> Any:
        """Return the tree with these tensors, in order, in their places."""
        leaves: list[Any] = [None] * self.spec.num_leaves
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree.unflatten(leaves, self.spec)


def take_apart(values: Any) -> tuple[list[Tensor], Structure]:
    """Return the tensors of a tree, in order, and the rest of it.

    Leaves that are no tensors are lost.
    """
    leaves, spec = tree.flatten(values)
    places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    return [leaves[place] for place in places], Structure(spec, places)
