"""Errors of `jit`."""


class TraceError(TypeError):
    """A function that can't be traced to a graph, and what to change in it."""


def is_left_of_trace(value: object) -> bool:
    """True if a value was kept by a function that was traced: it has a shape and no numbers.

    It goes by the name of the class, as importing it takes a second.
    """
    return type(value).__name__ == "FakeTensor"


LEFT_OF_TRACE = (
    "is a value of an earlier trace, which has a shape and no numbers: a function kept it while it "
    "was traced; let the function return it instead"
)


class CompileError(RuntimeError):
    """A graph that the back end could not compile; `backend="graph"` runs it as it is."""


class DonatedError(RuntimeError):
    """A tensor that was used after it was donated; found by FUNCNETS_DEBUG=donation."""


class VerificationError(AssertionError):
    """A pass that left a wrong graph: an error of funcnets, found by FUNCNETS_DEBUG=verify."""


class FormatError(TraceError):
    """A view of a tensor whose memory format lowerings chose is written to: do without them."""
