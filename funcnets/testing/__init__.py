"""Tools that prove functional networks equal to modules: `twins`, the networks as modules."""

from funcnets.testing import twins

__all__ = ["twins"]
