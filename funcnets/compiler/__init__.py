"""`jit`: trace a pure function to one flat graph, lower it, compile it, donate its buffers."""

from funcnets.compiler.api import Jitted, jit
from funcnets.compiler.backends.heap import keep_memory
from funcnets.compiler.errors import CompileError, DonatedError, TraceError
from funcnets.compiler.lowerings import DEFAULT, Lowering
from funcnets.compiler.trace import Trace

__all__ = [
    "DEFAULT",
    "CompileError",
    "DonatedError",
    "Jitted",
    "Lowering",
    "Trace",
    "TraceError",
    "jit",
    "keep_memory",
]
