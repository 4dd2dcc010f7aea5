"""Errors of `jit`."""


class TraceError(TypeError):
    """A function that can't be traced to a graph, and what to change in it."""


class CompileError(RuntimeError):
    """A graph that the back end could not compile; `backend="graph"` runs it as it is."""


class DonatedError(RuntimeError):
    """A tensor that was used after it was donated; found by FUNCNETS_DEBUG=donation."""


class VerificationError(AssertionError):
    """A pass that left a wrong graph: an error of funcnets, found by FUNCNETS_DEBUG=verify."""


class FormatError(TraceError):
    """A view of a tensor whose memory format lowerings chose is written to: do without them."""
