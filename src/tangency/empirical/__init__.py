"""The kernel of a network at its present parameters, exact at finite width."""

from tangency.empirical.kernel import EmpiricalKernel
from tangency.empirical.linearized import linearize, taylor

__all__ = ["EmpiricalKernel", "linearize", "taylor"]
