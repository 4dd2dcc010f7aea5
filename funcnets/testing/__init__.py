"""Tools for proving functional networks equal to modules."""
