"""Networks made of networks: what modules make hard, as functions of a `Layer`."""

from funcnets.transforms.check import NonFiniteError, checked

__all__ = ["NonFiniteError", "checked"]
