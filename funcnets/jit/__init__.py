"""`jit`: trace a pure function to one flat graph, lower it, compile it, donate its buffers."""

from funcnets.jit.compile import CompileError
from funcnets.jit.lowerings import DEFAULT, Lowering
from funcnets.jit.stage import Jitted, jit
from funcnets.jit.trace import Trace, TraceError

__all__ = ["DEFAULT", "CompileError", "Jitted", "Lowering", "Trace", "TraceError", "jit"]
