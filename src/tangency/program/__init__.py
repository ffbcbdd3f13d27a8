"""What a module computes, captured once; both kernel engines read it."""

from tangency.program.capture import Program, capture
from tangency.program.trace import Trace, trace

__all__ = ["Program", "Trace", "capture", "trace"]
